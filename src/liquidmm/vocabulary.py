"""Token ids of text, images and the three special tokens.

Token ids, from low to high::

    [0, text_size)                                tokenizer, including the special tokens
    [text_size, image_offset)                     padding of the embedding table, often none
    [image_offset, image_offset + codebook_size)  image tokens; code c is image_offset + c

A *code* is a codebook index; a *token id* is a row of the embedding table. No other module adds or
subtracts the offset. A value outside its range is an error and is never clamped.

This module imports neither torch nor numpy; its methods accept tensors and numpy arrays.
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
"""The special tokens, in the order of the fields `boi`, `eoi` and `unconditional`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Ranges of text, image and special tokens in the embedding table."""

    text_size: int
    """Token ids of the tokenizer are in [0, text_size)."""
    image_offset: int
    """Token id of image code 0; at least `text_size`."""
    codebook_size: int
    """Number of image codes."""
    boi: int
    """Token id that begins an image."""
    eoi: int
    """Token id that ends an image."""
    unconditional: int
    """Token id that replaces the caption in classifier-free guidance."""

    def __post_init__(self) -> None:
        if self.codebook_size <= 0:
            raise CheckpointError(
                f"vocabulary: codebook_size: expected a positive number, got {self.codebook_size}."
            )
        if not 0 < self.text_size <= self.image_offset:
            raise CheckpointError(
                "vocabulary: expected 0 < text_size <= image_offset, "
                f"got text_size {self.text_size}, image_offset {self.image_offset}."
            )
        special = (self.boi, self.eoi, self.unconditional)
        if len(set(special)) < 3 or not all(0 <= token < self.text_size for token in special):
            raise CheckpointError(
                "vocabulary: boi, eoi and unconditional: expected three different token ids "
                f"below {self.text_size}, got {special}."
            )

    @property
    def size(self) -> int:
        """Number of rows of the embedding table and of the output head."""
        return self.image_offset + self.codebook_size

    @property
    def image_slice(self) -> slice:
        """Slice of the logits for image tokens; column i of the slice is code i."""
        return slice(self.image_offset, self.size)

    def to_token_ids(self, codes: Array) -> Array:
        """Convert image codes to token ids.

        Args:
            codes: Integers in [0, codebook_size), any shape, of a dtype wide enough for token ids.

        Returns:
            Token ids in the image slice, same shape and dtype.

        Raises:
            DataError: A code is outside the codebook; the message contains the first one.
        """
        self._check(codes, 0, "code", "Check that the image was encoded with this image tokenizer.")
        return codes + self.image_offset

    def to_codes(self, token_ids: Array) -> Array:
        """Convert token ids to image codes.

        Args:
            token_ids: Token ids in the image slice, any shape.

        Returns:
            Codes in [0, codebook_size), same shape and dtype.

        Raises:
            DataError: A token id is outside the image slice; the message contains the first one.
        """
        remedy = "Pass only the tokens between boi and eoi."
        self._check(token_ids, self.image_offset, "token id", remedy)
        return token_ids - self.image_offset

    def is_image(self, token_ids: Array) -> Array:
        """Return a boolean array of the same shape that marks the image tokens."""
        return (token_ids >= self.image_offset) & (token_ids < self.size)

    def to_dict(self) -> dict[str, int]:
        """Return the six fields as written into `processor_config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object], where: str = "vocabulary") -> Vocabulary:
        """Read the six fields that `to_dict` returned.

        Args:
            data: The fields.
            where: Start of the error message, usually a file name.

        Raises:
            CheckpointError: A field is missing, unknown or not an integer.
        """
        names = [field.name for field in fields(cls)]
        if set(data) != set(names):
            raise CheckpointError(
                f"{where}: vocabulary: expected the fields {sorted(names)}, got {sorted(data)}."
            )
        values: dict[str, int] = {}
        for name in names:
            value = data[name]
            if not isinstance(value, int) or isinstance(value, bool):
                raise CheckpointError(
                    f"{where}: vocabulary.{name}: expected an integer, got {value!r}."
                )
            values[name] = value
        return cls(**values)

    def _check(self, values: Array, low: int, what: str, remedy: str) -> None:
        bad = (values < low) | (values >= low + self.codebook_size)
        if bool(bad.any()):
            position = bad.reshape(-1).tolist().index(True)
            first = int(values.reshape(-1)[position])
            raise DataError(
                f"vocabulary: {what} {first} at position {position} is outside the image range "
                f"({low} to {low + self.codebook_size - 1}). {remedy}"
            )
