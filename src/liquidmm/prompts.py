r"""Every text template as data.

Wording of the requests' first entry, of the caption prompt and of the size hint is that of the
published Liquid release (https://github.com/FoundationVision/Liquid), so that its checkpoint
understands ours. Nothing here knows about ids: `liquidmm.sequences` lays them out.

A full text-to-image prompt is ``caption + size hint + request``; hint and request bring their own
leading space.
"""

from __future__ import annotations

REQUEST = " Generate an image based on this description."
"""The request of every text-to-image prompt at inference."""

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
"""The requests training draws from; the first is the one used at inference."""

CAPTION_PROMPT = "The caption of this image is:"
"""Stands between a picture and its caption; the caption follows with a leading space."""

IMAGE_PLACEHOLDER = "<image>"
"""Stands in a chat message where a picture goes."""

CHATML_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Chat template of a model made from scratch."""

GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""For a tokenizer that knows Gemma's turn markers and brings no template, as the published Liquid
checkpoint."""

FALLBACK_TEMPLATES = {
    ("<start_of_turn>", "<end_of_turn>"): GEMMA_TEMPLATE,
    ("<|im_start|>", "<|im_end|>"): CHATML_TEMPLATE,
}
"""Turn markers a tokenizer may know -> the template to use when it has none."""


def size_hint(width: int, height: int) -> str:
    """Return the sentence that asks for a picture of ``width`` x ``height`` pixels."""
    return f" Image Size: Width is {width} Height is {height}."


def text_to_image_prompt(
    caption: str, request: str = REQUEST, size: tuple[int, int] | None = None
) -> str:
    """Return caption, size hint and request as one text.

    Args:
        caption: What the picture shows.
        request: One of `REQUESTS`.
        size: Width and height in pixels; None leaves the hint out.
    """
    return caption.strip() + (size_hint(*size) if size is not None else "") + request
