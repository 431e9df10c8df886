"""What an answer is made of.

Contract: a stream yields `TextPiece` and `Picture` in the order the model wrote them; a `Reply` is
all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """Some more text of an answer."""

    text: str
    """Whole characters, never empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of an answer."""

    image: Image.Image
    """The picture."""
    codes: Tensor
    """Its codes, (h, w), int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    """The text; `<image>` stands where a picture goes."""
    images: tuple[Image.Image, ...]
    """The pictures, in order."""
