"""The only id arithmetic: text ids, the image slice and the three markers.

One id space, from low to high::

    [0, text_size)                                what the tokenizer can write, markers included
    [text_size, image_offset)                     unused rows of a padded table, often none
    [image_offset, image_offset + codebook_size)  image codes, code c has id image_offset + c

The three markers are ordinary special tokens of the tokenizer, so they always lie below the image
slice. A *code* is a codebook index, an *id* is a row of the embedding table; nothing else in the
project adds or subtracts an offset. An id or code outside its range is an error, never clamped.

This module imports neither torch nor numpy; its methods work on tensors and on numpy arrays alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from liquidmm.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])
else:
    Array = TypeVar("Array")

SPECIAL_TOKENS = ("<boi>", "<eoi>", "<unconditional>")
"""Tokens of the markers, in the order of the fields `boi`, `eoi` and `unconditional`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Where text, image codes and markers lie in one id space."""

    text_size: int
    """Ids the tokenizer can write lie in [0, text_size)."""
    image_offset: int
    """Id of image code 0; at least `text_size`."""
    codebook_size: int
    """Number of image codes."""
    boi: int
    """Id of the marker that begins an image."""
    eoi: int
    """Id of the marker that ends an image."""
    unconditional: int
    """Id that stands for a dropped caption in classifier-free guidance."""

    def __post_init__(self) -> None:
        if self.codebook_size <= 0:
            raise CheckpointError(
                f"vocabulary: codebook_size is {self.codebook_size}. Give a positive number."
            )
        if not 0 < self.text_size <= self.image_offset:
            raise CheckpointError(
                f"vocabulary: text_size is {self.text_size}, image_offset {self.image_offset}. "
                "There must be text ids, and image ids start after all of them."
            )
        markers = (self.boi, self.eoi, self.unconditional)
        if len(set(markers)) < 3 or not all(0 <= marker < self.text_size for marker in markers):
            raise CheckpointError(
                f"vocabulary: boi, eoi and unconditional are {markers}. "
                f"They must be three different text ids below {self.text_size}."
            )

    @property
    def size(self) -> int:
        """Rows of the embedding table and of the head."""
        return self.image_offset + self.codebook_size

    @property
    def image_slice(self) -> slice:
        """Columns of the logits that are image codes; column i of the slice is code i."""
        return slice(self.image_offset, self.size)

    def to_ids(self, codes: Array) -> Array:
        """Turn image codes into vocabulary ids.

        Args:
            codes: Integers in [0, codebook_size), any shape; a type wide enough for the ids.

        Returns:
            Ids in the image slice, same shape and type.

        Raises:
            DataError: A code is outside the codebook; the first one is named.
        """
        self._check(codes, 0, "code", "Was the picture encoded with another image tokenizer?")
        return codes + self.image_offset

    def to_codes(self, ids: Array) -> Array:
        """Turn vocabulary ids into image codes.

        Args:
            ids: Ids, all inside the image slice, any shape.

        Returns:
            Codes in [0, codebook_size), same shape and type.

        Raises:
            DataError: An id is outside the image slice; the first one is named.
        """
        self._check(
            ids, self.image_offset, "id", "Cut the ids between boi and eoi before decoding."
        )
        return ids - self.image_offset

    def is_image(self, ids: Array) -> Array:
        """Tell which ids are image codes: a boolean array of the same shape."""
        return (ids >= self.image_offset) & (ids < self.size)

    def to_dict(self) -> dict[str, int]:
        """Return the six fields as written into `processor_config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object], where: str = "vocabulary") -> Vocabulary:
        """Read the six fields back.

        Args:
            data: What `to_dict` returned.
            where: Start of the error message, usually a file name.

        Raises:
            CheckpointError: A field is missing, unknown or no integer.
        """
        names = [field.name for field in fields(cls)]
        if set(data) != set(names):
            raise CheckpointError(
                f"{where}: the vocabulary has the fields {sorted(data)}. Expected {sorted(names)}."
            )
        values: dict[str, int] = {}
        for name in names:
            value = data[name]
            if not isinstance(value, int) or isinstance(value, bool):
                raise CheckpointError(f"{where}: {name} is {value!r}. Give an integer.")
            values[name] = value
        return cls(**values)

    def _check(self, values: Array, low: int, what: str, remedy: str) -> None:
        bad = (values < low) | (values >= low + self.codebook_size)
        if bool(bad.any()):
            position = bad.reshape(-1).tolist().index(True)
            first = int(values.reshape(-1)[position])
            raise DataError(
                f"vocabulary: {what} {first} at position {position} is no image {what} "
                f"({low} to {low + self.codebook_size - 1}). {remedy}"
            )
