"""Training examples: token ids and labels of one sample for one task.

`labels[i]` is the token id if position i is trained on and `IGNORE_INDEX` otherwise; labels are not
shifted. Training uses all tokens of a text; the image tokens, end of image and end of sequence of
`text_to_image`; the caption and end of sequence of `image_to_text`; and the assistant's turns of a
chat. All random choices come from the generator passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from annotated_types import Ge, Le

from liquidmm import prompts
from liquidmm.data.records import Message
from liquidmm.data.samples import Sample, SampleKind
from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.ranges import RangeChecked
from liquidmm.sequences import Sequences

IGNORE_INDEX = -100
"""Label of a position that is not trained on."""

Task = Literal["text", "text_to_image", "image_to_text", "chat"]
TASKS: tuple[str, ...] = get_args(Task)
"""The tasks; the index of a name is its task id."""

TASK_KINDS: Mapping[str, SampleKind] = {
    "text": "text",
    "text_to_image": "image_text",
    "image_to_text": "image_text",
    "chat": "chat",
}
"""The kind of sample that each task is built from."""

CHAT_REQUESTS = (
    "Draw {}.",
    "Please draw {}.",
    "Draw me {}.",
    "Can you draw {}?",
    "Make a picture of {}.",
    "Show me {}.",
    "Please paint {}.",
    "I would like a picture of {}.",
)
"""User requests for an image in a chat; the caption replaces the braces."""

TokenIds: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Probability: TypeAlias = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One sample as the model sees it."""

    input_ids: TokenIds
    """Token ids, (T,), int32."""
    labels: TokenIds
    """Token ids to train on, `IGNORE_INDEX` elsewhere; (T,), int32."""
    task: Task
    key: str = ""
    """Key of the record, for messages."""
    can_split: bool = False
    """Whether it can be split anywhere because it contains no image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleConfig(RangeChecked):
    """Random choices in the format of examples."""

    caption_dropout: Probability = 0.1
    """Probability that the text of `text_to_image` is replaced by the unconditional token, which
    trains classifier-free guidance (reference implementation: 0.1)."""
    size_hint: bool = False
    """Add the size of the image to the prompt of `text_to_image`, except in a chat."""
    first_caption_prob: Probability = 0.5
    """Probability that `text_to_image` uses the canonical caption; otherwise, it uses any caption
    with equal probability."""
    chat_format_prob: Probability = 0.1
    """Probability that a `text_to_image` example whose caption is not dropped becomes a chat in
    which the image is the answer."""
    first_row_only_prob: Probability = 0.0
    """Probability that `text_to_image` ends after the first row of image tokens. With few images
    and many epochs, a model recognizes an image by its first tokens, and only these are still
    predicted from the text; short examples repeat them at a fraction of the cost."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "guidance_dropout": "caption_dropout",
        "first_caption_share": "first_caption_prob",
        "draw_in_chat_share": "chat_format_prob",
        "opening_share": "first_row_only_prob",
    }


class ExampleBuilder:
    """Builds examples for one tokenizer and vocabulary."""

    def __init__(
        self,
        sequences: Sequences,
        config: ExampleConfig | None = None,
        downsample_factor: int | None = None,
    ) -> None:
        """Create a builder; size hints need `downsample_factor`, the pixels per code on each side.

        Raises:
            ConfigError: Size hints are enabled and the downsampling factor is missing.
        """
        self.sequences = sequences
        self.config = config or ExampleConfig()
        self.downsample_factor = downsample_factor
        if self.config.size_hint and downsample_factor is None:
            raise ConfigError(
                "size_hint: requires the image tokenizer's downsampling factor. Use a checkpoint "
                "with an image tokenizer, or turn it off."
            )

    def build(self, sample: Sample, task: Task, rng: np.random.Generator) -> Example:
        """Build the example of one sample for one task; only `text_to_image` uses `rng`.

        Raises:
            DataError: The sample's kind is not the one in `TASK_KINDS`, a code is outside the
                codebook, or the chat template rejected the turns; the message names the sample.
            ConfigError: The task is unknown.
        """
        if task not in TASKS:
            raise ConfigError(f"task: unknown task '{task}'.{suggest(task, TASKS)}")
        if sample.kind != TASK_KINDS[task]:
            raise DataError(
                f"{sample.key}: a sample of kind {sample.kind} cannot train {task} (needs "
                f"{TASK_KINDS[task]}). Choose another task for this source."
            )
        try:
            ids, loss_mask = self._layout(sample, task, rng)
        except DataError as error:
            raise DataError(f"{sample.key}: {error}") from error
        if task == "text_to_image" and rng.random() < self.config.first_row_only_prob:
            end = ids.index(self.sequences.vocabulary.boi) + 1 + sample.image_codes[0].shape[1]
            ids, loss_mask = ids[:end], loss_mask[:end]
        input_ids = np.array(ids, dtype=np.int32)
        return Example(
            input_ids=input_ids,
            labels=np.where(np.array(loss_mask, dtype=bool), input_ids, np.int32(IGNORE_INDEX)),
            task=task,
            key=sample.key,
            can_split=not sample.image_codes,
        )

    def _layout(
        self, sample: Sample, task: Task, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        match task:
            case "text":
                ids = self.sequences.text(sample.text)
                return ids, [True] * len(ids)
            case "chat":
                return self.sequences.chat(sample.messages, sample.image_codes)
            case "image_to_text":
                prompt = self.sequences.image_to_text_prompt(sample.image_codes[0])
                answer = self.sequences.caption(sample.captions[0])
            case "text_to_image":
                if rng.random() < self.config.caption_dropout:
                    prompt = self.sequences.unconditional_prompt()
                else:
                    is_first = rng.random() < self.config.first_caption_prob
                    number = 0 if is_first else int(rng.integers(len(sample.captions)))
                    caption = sample.captions[number]
                    if rng.random() < self.config.chat_format_prob:
                        return self._chat(sample, caption, rng)
                    prompt = self._prompt(sample, caption, rng)
                # the prompt already ends with the token that begins the image
                answer = self.sequences.image(sample.image_codes[0])[1:]
        if self.sequences.eos is not None:
            answer = [*answer, self.sequences.eos]
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)

    def _prompt(self, sample: Sample, caption: str, rng: np.random.Generator) -> list[int]:
        request = prompts.REQUESTS[int(rng.integers(len(prompts.REQUESTS)))]
        size = None
        if self.config.size_hint and self.downsample_factor is not None:
            height, width = sample.image_codes[0].shape
            size = (width * self.downsample_factor, height * self.downsample_factor)
        return self.sequences.text_to_image_prompt(caption, request, size)

    def _chat(
        self, sample: Sample, caption: str, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        request = CHAT_REQUESTS[int(rng.integers(len(CHAT_REQUESTS)))]
        turns = (
            Message(role="user", content=request.format(caption_in_sentence(caption))),
            Message(role="assistant", content=prompts.IMAGE_PLACEHOLDER),
        )
        return self.sequences.chat(turns, sample.image_codes[:1])


def caption_in_sentence(caption: str) -> str:
    """Adapt a caption to follow "Draw": no final period, lowercase unless a word is a name.

    A capital is kept if the second character is not a lowercase letter or a space, as in "USA".
    """
    # a placeholder would need an image that does not exist
    text = caption.strip().rstrip(".").replace(prompts.IMAGE_PLACEHOLDER, "image")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
