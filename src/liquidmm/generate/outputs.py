"""Outputs of a request: events with tokens, pieces with text and images, and whole replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from liquidmm.errors import LiquidError

Finish = Literal["stop", "length", "error"]
"""Why a reply ended: the model ended it, a limit or the context ended it, or it failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStep:
    """The model generated one text token."""

    token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRows:
    """The first rows of an image are complete."""

    codes: Tensor
    """(r, w) with r below h, int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageStep:
    """The model completed an image."""

    codes: Tensor
    """(h, w), int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The last event of a request; it contains the error if the request failed."""

    finish: Finish
    error: LiquidError | None = None


Event = TextStep | ImageRows | ImageStep | End


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """The next part of the text: complete characters, never empty."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreview:
    """An incomplete image at full size; the missing part is gray."""

    image: Image.Image
    done: float
    """Fraction of its rows that are complete, above 0 and below 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePiece:
    """A complete image, RGB, and its codes, (h, w), int64."""

    image: Image.Image
    codes: Tensor


Piece = TextPiece | ImagePreview | ImagePiece


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The whole output of a request; text and images are empty if it failed."""

    text: str = ""
    """The text, with `<image>` for each image."""
    images: tuple[Image.Image, ...] = ()
    finish: Finish = "stop"
    error: LiquidError | None = None
