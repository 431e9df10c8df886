"""What an answer is made of.

Contract: a stream yields `TextPiece`, `Preview` and `Picture` in the order the model made them; a
`Reply` is all of it without the previews.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from liquidmm.errors import LiquidError
from liquidmm.generate.requests import Finish


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """Some more text of an answer."""

    text: str
    """Whole characters, never empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A picture as far as it is drawn."""

    image: Image.Image
    """The picture in its full size; what is missing is grey."""
    done: float
    """Share of its rows that are drawn, above 0 and below 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of an answer."""

    image: Image.Image
    """The picture."""
    codes: Tensor
    """Its codes, (h, w), int64."""


Piece = TextPiece | Preview | Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    """The text; `<image>` stands where a picture goes."""
    images: tuple[Image.Image, ...]
    """The pictures, in order."""
    finish: Finish = "stop"
    """Why it ended."""
    error: LiquidError | None = None
    """What was wrong with the request, where it failed; the rest is empty then."""
