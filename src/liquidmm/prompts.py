r"""Text templates: prompts and chat templates.

The first request, the caption prompt and the size hint are worded as in the reference
implementation (https://github.com/FoundationVision/Liquid) because its checkpoint expects them.
`liquidmm.sequences` turns templates into tokens.
"""

from __future__ import annotations

REQUEST = " Generate an image based on this description."
"""The request that ends every text-to-image prompt at inference."""

REQUESTS = (
    REQUEST,
    " Draw a picture that shows this.",
    " Turn this description into an image.",
    " Create an image that matches these words.",
    " Please make a picture of this.",
    " Show me this as an image.",
    " Produce a picture from the text above.",
    " Paint what is described here.",
    " Render an image of this description.",
    " Make an image from this caption.",
)
"""The requests used in training; the first is the one used at inference."""

CAPTION_PROMPT = "The caption of this image is:"
"""Text between an image and its caption; the caption follows with a leading space."""

IMAGE_PLACEHOLDER = "<image>"
"""Position of an image in a chat message."""

CHATML_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Chat template of models created from scratch."""

GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Chat template for tokenizers with Gemma's turn tokens and without a template, such as that of the
published Liquid checkpoint."""

FALLBACK_TEMPLATES = {
    ("<start_of_turn>", "<end_of_turn>"): GEMMA_TEMPLATE,
    ("<|im_start|>", "<|im_end|>"): CHATML_TEMPLATE,
}
"""Turn tokens of a tokenizer -> the chat template to use if it has none."""


def size_hint(width: int, height: int) -> str:
    """Return the sentence that asks for ``width`` x ``height`` pixels, with a leading space."""
    return f" Image Size: Width is {width} Height is {height}."


def text_to_image_prompt(
    caption: str, request: str = REQUEST, size: tuple[int, int] | None = None
) -> str:
    """Return ``caption + size hint + request``.

    Args:
        caption: Description of the image.
        request: One of `REQUESTS`.
        size: Width and height in pixels; None omits the hint.
    """
    return caption.strip() + (size_hint(*size) if size is not None else "") + request
