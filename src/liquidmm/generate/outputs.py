"""What a request produces: events in tokens, pieces with text and images, and whole replies."""

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
    """Token id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRows:
    """The first rows of an image are complete."""

    codes: Tensor
    """Codes of these rows, (r, w) with r below h, int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageStep:
    """The model completed an image."""

    codes: Tensor
    """Codes, (h, w), int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The last event of a request."""

    finish: Finish
    """Why it ended."""
    error: LiquidError | None = None
    """The error, if it failed."""


Event = TextStep | ImageRows | ImageStep | End


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """The next part of the text."""

    text: str
    """Complete characters, never empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreview:
    """An image that is still being generated."""

    image: Image.Image
    """The image at full size; the missing part is gray."""
    done: float
    """Share of its rows that are complete, above 0 and below 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePiece:
    """A complete image."""

    image: Image.Image
    """RGB."""
    codes: Tensor
    """Its codes, (h, w), int64."""


Piece = TextPiece | ImagePreview | ImagePiece


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The whole output of a request."""

    text: str = ""
    """The text, with `<image>` in place of each image."""
    images: tuple[Image.Image, ...] = ()
    """The images, in order."""
    finish: Finish = "stop"
    """Why it ended."""
    error: LiquidError | None = None
    """The error, if the request failed; text and images are then empty."""
