"""What is asked of the engine and what comes back, in ids.

Contract: a request holds all that its answer depends on, its seed included. An answer is a stream
of steps that ends with exactly one `End`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.generate.noise import check_seed
from liquidmm.generate.sampling import SamplingConfig

Finish = Literal["stop", "length", "error"]
"""Why an answer ended: the model ended it; the token limit or the context did; it failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One picture to draw."""

    prompt: tuple[int, ...]
    """Ids up to and including boi."""
    grid: tuple[int, int]
    """Rows and columns of codes."""
    sampling: SamplingConfig
    """How codes are drawn."""
    seed: int = 0
    """Seed of this picture, from 0."""
    preview_rows: int = 0
    """Rows of codes between two `ImageRows`; 0 gives none."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _check_rows(self.preview_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """One text to write, which may hold pictures."""

    prompt: tuple[int, ...]
    """Ids the text follows."""
    max_tokens: int
    """Text ids to write at most, at least 1; the context may end the text earlier."""
    sampling: SamplingConfig
    """How text is drawn; its guidance has no effect."""
    picture_sampling: SamplingConfig
    """How the codes of a picture inside it are drawn."""
    seed: int = 0
    """Seed of this text and of its pictures, from 0."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a picture that the model may open; None forbids pictures."""
    preview_rows: int = 0
    """As in `ImageRequest`, for pictures inside the text."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _check_rows(self.preview_rows)
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: must be at least 1 ({self.max_tokens}). Ask for more.")


Request = ImageRequest | TextRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStep:
    """The model wrote one text id."""

    id: int
    """The id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRows:
    """A picture is drawn this far."""

    codes: Tensor
    """Codes of its first rows, (r, w) with r below h, int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageStep:
    """The model drew a whole picture."""

    codes: Tensor
    """Codes, (h, w), int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Nothing follows."""

    finish: Finish
    """Why."""
    error: LiquidError | None = None
    """What was wrong, where it failed."""


Step = TextStep | ImageRows | ImageStep | End


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A finished text."""

    ids: tuple[int, ...]
    """Its ids, without the stop id."""
    finish: Finish
    """Why it ended."""


def _check_rows(rows: int) -> None:
    if rows < 0:
        raise ConfigError(f"preview_rows: must be at least 0 ({rows}; 0 gives no previews).")
