"""A row of a shard becomes an example: its ids, and the labels that say which of them are learnt.

Contract: `labels[i]` is the true id where position i is learnt and `IGNORE` elsewhere; nothing is
shifted. What is learnt: everything of a text; codes, end of image and end of sequence of a drawing;
caption and end of sequence of a description; the assistant's turns of a chat. Every random choice
comes from the generator that is passed in, so equal rows and generators give equal examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from liquidmm import prompts
from liquidmm.data.records import Message
from liquidmm.data.shard_file import Kind, Row
from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.sequences import Sequences

IGNORE = -100
"""Label of a position that is not learnt."""

Task = Literal["text", "text_to_image", "image_to_text", "chat"]
TASKS: tuple[str, ...] = get_args(Task)
"""The tasks; the place of a name is its task id."""

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "text": "text",
        "text_to_image": "image_text",
        "image_to_text": "image_text",
        "chat": "chat",
    }
)
"""The kind of row that each task is made from."""

DRAW_REQUESTS = (
    "Draw {}.",
    "Please draw {}.",
    "Draw me {}.",
    "Can you draw {}?",
    "Make a picture of {}.",
    "Show me {}.",
    "Please paint {}.",
    "I would like a picture of {}.",
)
"""How a user asks for a picture in a chat; the caption takes the place of the braces."""

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One sequence as the model sees it."""

    input_ids: Ids
    """Ids, (T,), int32."""
    labels: Ids
    """The same ids where they are learnt, `IGNORE` elsewhere; (T,), int32."""
    task: Task
    """What it teaches."""
    key: str = ""
    """Name of the record, for messages."""
    splittable: bool = False
    """Whether it may be cut anywhere, because it holds no picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleConfig:
    """The random choices of rendering."""

    guidance_dropout: float = 0.1
    """Share of drawings whose text is replaced by the unconditional marker (the release: 0.1)."""
    size_hint: bool = False
    """Write the size of the picture into the prompt of a drawing, except in a chat."""
    first_caption_share: float = 0.5
    """Share of drawings that take the canonical caption; the others draw one of all captions."""
    draw_in_chat_share: float = 0.1
    """Share of drawings, after dropout, that are a chat turn answered by the picture."""
    opening_share: float = 0.0
    """Share of drawings that end after their first row of codes. With few pictures and many epochs
    a model soon knows a picture by its first codes, and only these are still learnt from the text:
    openings repeat them at a fraction of the cost."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (
            "guidance_dropout",
            "first_caption_share",
            "draw_in_chat_share",
            "opening_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give a share from 0 to 1.")


class ExampleBuilder:
    """Renders rows for one tokenizer and vocabulary."""

    def __init__(
        self,
        sequences: Sequences,
        config: ExampleConfig | None = None,
        downsample_factor: int | None = None,
    ) -> None:
        """Set up.

        Args:
            sequences: Lays the ids out.
            config: The random choices; None for the defaults.
            downsample_factor: Pixels per code and side, needed to say the size of a picture.

        Raises:
            ConfigError: Size hints are wanted and the factor is not known.
        """
        self.sequences = sequences
        self.config = config or ExampleConfig()
        self.downsample_factor = downsample_factor
        if self.config.size_hint and downsample_factor is None:
            raise ConfigError(
                "size_hint: the tokenizer's factor is unknown. Pass it, or turn it off."
            )

    def render(self, row: Row, task: Task, rng: np.random.Generator) -> Example:
        """Lay one row out for one task.

        Args:
            row: A row of the kind that the task needs, see `KINDS`.
            task: What the example teaches.
            rng: Source of the random choices; only `text_to_image` uses it.

        Returns:
            The example.

        Raises:
            DataError: The row is of another kind, a code is outside the codebook, or the chat
                template refused the turns; the message names the row.
            ConfigError: The task is unknown.
        """
        if task not in TASKS:
            raise ConfigError(f"task: '{task}' is unknown.{suggest(task, TASKS)}")
        if row.kind != KINDS[task]:
            raise DataError(
                f"{row.key}: a row of kind {row.kind} cannot teach {task} (needs {KINDS[task]}). "
                "Choose another task for this source."
            )
        try:
            ids, learnt = self._layout(row, task, rng)
            if task == "text_to_image" and rng.random() < self.config.opening_share:
                end = ids.index(self.sequences.vocabulary.boi) + 1 + row.pictures[0].shape[1]
                ids, learnt = ids[:end], learnt[:end]
        except DataError as error:
            raise DataError(f"{row.key}: {error}") from error
        input_ids = np.array(ids, dtype=np.int32)
        labels = np.where(np.array(learnt, dtype=bool), input_ids, np.int32(IGNORE))
        return Example(
            input_ids=input_ids,
            labels=labels,
            task=task,
            key=row.key,
            splittable=not row.pictures,
        )

    def _layout(
        self, row: Row, task: Task, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        match task:
            case "text":
                ids = self.sequences.text(row.text)
                return ids, [True] * len(ids)
            case "chat":
                return self.sequences.chat(row.messages, row.pictures)
            case "image_to_text":
                prompt = self.sequences.image_to_text_prompt(row.pictures[0])
                answer = self.sequences.caption(row.captions[0])
            case "text_to_image":
                if rng.random() < self.config.guidance_dropout:
                    prompt = self.sequences.unconditional_prompt()
                else:
                    caption = self._caption(row, rng)
                    if rng.random() < self.config.draw_in_chat_share:
                        return self._drawn_in_chat(row, caption, rng)
                    prompt = self._prompt(row, caption, rng)
                # the prompt already ends with the marker that begins the picture
                answer = self.sequences.image(row.pictures[0])[1:]
        if self.sequences.eos is not None:
            answer = [*answer, self.sequences.eos]
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)

    def _caption(self, row: Row, rng: np.random.Generator) -> str:
        if rng.random() < self.config.first_caption_share:
            return row.captions[0]
        return row.captions[int(rng.integers(len(row.captions)))]

    def _prompt(self, row: Row, caption: str, rng: np.random.Generator) -> list[int]:
        request = prompts.REQUESTS[int(rng.integers(len(prompts.REQUESTS)))]
        size = None
        if self.config.size_hint and self.downsample_factor is not None:
            height, width = row.pictures[0].shape
            size = (width * self.downsample_factor, height * self.downsample_factor)
        return self.sequences.text_to_image_prompt(caption, request, size)

    def _drawn_in_chat(
        self, row: Row, caption: str, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        request = DRAW_REQUESTS[int(rng.integers(len(DRAW_REQUESTS)))]
        turns = (
            Message(role="user", content=request.format(_inside_sentence(caption))),
            Message(role="assistant", content=prompts.IMAGE_PLACEHOLDER),
        )
        return self.sequences.chat(turns, row.pictures[:1])


def _inside_sentence(caption: str) -> str:
    """Make a caption fit after "Draw": no full stop, and a small letter where a word starts big."""
    text = caption.strip().rstrip(".")
    # the placeholder of a picture would ask for one that is not there
    text = text.replace(prompts.IMAGE_PLACEHOLDER, "image")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
