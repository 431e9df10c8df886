"""Packing of a buffer of examples of any length into sequences of a fixed length.

The sequences of a buffer depend only on its examples and the seed. They are filled by best fit,
longest example first. Images are never split; text is split to fill the end of a sequence.
`position_ids` restart at 0 in every document: pass them to the model without an attention mask. The
first token of a document has no context, so it never has a label.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from liquidmm.data.examples import IGNORE_INDEX, TASKS, Example, TokenIds
from liquidmm.errors import ConfigError, DataError
from liquidmm.ranges import check_ranges

PADDING_TASK = -1
"""Task id of padding."""

_MIN_PIECE = 16
"""Minimum number of tokens of a piece of split text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How to pack sequences."""

    seq_len: Annotated[int, Ge(1)]
    """Tokens per sequence."""
    max_document_tokens: Annotated[int, Ge(0)] = 0
    """Maximum tokens per document, at most `seq_len`; 0 means `seq_len`. Longer text is split."""
    packing_buffer: Annotated[int, Ge(1)] = 512
    """Number of examples that are packed together; more reduce padding but delay the start."""
    overlong: Literal["error", "drop"] = "error"
    """What to do with an example that contains an image and exceeds `max_document_tokens`."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "length": "seq_len",
        "context": "max_document_tokens",
        "window": "packing_buffer",
        "too_long": "overlong",
    }

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_document_tokens > self.seq_len:
            raise ConfigError(
                f"max_document_tokens: expected at most seq_len ({self.seq_len}), got "
                f"{self.max_document_tokens}."
            )

    @property
    def document_limit(self) -> int:
        """Maximum tokens per document."""
        return self.max_document_tokens or self.seq_len


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """One training sequence of several documents; padding is a document without labels."""

    input_ids: TokenIds
    """Token ids, (T,), int32."""
    labels: TokenIds
    """Token ids to train on, `IGNORE_INDEX` elsewhere; (T,), int32; not shifted."""
    position_ids: TokenIds
    """Position in the document, from 0; (T,), int32."""
    task_ids: TokenIds
    """Index of the document's task in `TASKS`, `PADDING_TASK` for padding; (T,), int32."""
    keys: tuple[str, ...] = ()
    """Keys of its records, in order."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int((self.task_ids != PADDING_TASK).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBuffer:
    """Sequences that were packed together; each is built when it is read."""

    contents: list[list[Example]]
    """The examples of each sequence."""
    config: PackingConfig
    pad_id: int
    """Token id of padding; any id works because padding is never trained on or attended to."""
    dropped: tuple[tuple[str, int], ...] = ()
    """Record key and length of each example that was too long."""

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> PackedSequence:
        examples, length = self.contents[index], self.config.seq_len
        input_ids = np.full(length, self.pad_id, dtype=np.int32)
        labels = np.full(length, IGNORE_INDEX, dtype=np.int32)
        position_ids: TokenIds = np.zeros(length, dtype=np.int32)
        task_ids = np.full(length, PADDING_TASK, dtype=np.int32)
        start = 0
        for example in examples:
            end = start + len(example.input_ids)
            input_ids[start:end] = example.input_ids
            labels[start + 1 : end] = example.labels[1:]
            position_ids[start:end] = np.arange(end - start)
            task_ids[start:end] = TASKS.index(example.task)
            start = end
        # the model must support the positions of padding too
        position_ids[start:] = np.arange(length - start) % self.config.document_limit
        return PackedSequence(
            input_ids=input_ids,
            labels=labels,
            position_ids=position_ids,
            task_ids=task_ids,
            keys=tuple(example.key for example in examples),
        )

    def __iter__(self) -> Iterator[PackedSequence]:
        return (self[index] for index in range(len(self)))


def pack(
    examples: Iterable[Example], config: PackingConfig, pad_id: int = 0, seed: Sequence[int] = (0,)
) -> PackedBuffer:
    """Pack examples into sequences, in an order shuffled by the seed.

    Raises:
        DataError: An example with an image is longer than the limit and `overlong` is "error"; the
            message names the record and both lengths.
    """
    pieces: list[Example] = []
    dropped: list[tuple[str, int]] = []
    for example in examples:
        parts = split(example, config)
        pieces += parts
        if not parts:
            dropped.append((example.key, len(example.input_ids)))
    sequences = _fill(pieces, config.seq_len)
    order = np.random.default_rng(seed).permutation(len(sequences))
    return PackedBuffer(
        contents=[sequences[place] for place in order],
        config=config,
        pad_id=pad_id,
        dropped=tuple(dropped),
    )


def split(example: Example, config: PackingConfig) -> list[Example]:
    """Split an example into pieces that fit, in order; return an empty list if it is dropped.

    Raises:
        DataError: As for `pack`.
    """
    size, limit = len(example.input_ids), config.document_limit
    if size <= limit:
        return [example]
    if example.can_split:
        return [_slice(example, start, start + limit) for start in range(0, size, limit)]
    if config.overlong == "drop":
        return []
    raise DataError(
        f"{example.key or 'example'}: {size} tokens, but at most {limit} fit. Increase "
        'data.seq_len, use smaller images or texts, or drop such records (data.overlong = "drop").'
    )


def _fill(pieces: list[Example], length: int) -> list[list[Example]]:
    """Place unsplittable examples first, then text that fits, then text that must be split."""
    bins = _Bins(length)
    longest_first = sorted(pieces, key=lambda piece: -len(piece.input_ids))
    for piece in longest_first:
        if not piece.can_split and not bins.add(piece):
            bins.open()
            bins.add(piece)
    texts = [piece for piece in longest_first if piece.can_split]
    for text in [text for text in texts if not bins.add(text)]:
        rest = text
        while not bins.add(rest):
            rest = bins.add_part(rest)
    return bins.contents


class _Bins:
    """Sequences, sorted by free space."""

    def __init__(self, length: int) -> None:
        self.contents: list[list[Example]] = []
        self._length = length
        self._free: list[tuple[int, int]] = []  # free space and index of a sequence, ascending

    def open(self) -> None:
        """Add an empty sequence."""
        self._free.append((self._length, len(self.contents)))
        self.contents.append([])

    def add(self, piece: Example) -> bool:
        """Add a piece where it leaves the least space; return False if it does not fit anywhere."""
        place = bisect_left(self._free, (len(piece.input_ids), -1))
        if place == len(self._free):
            return False
        self._put(place, piece)
        return True

    def add_part(self, text: Example) -> Example:
        """Fill the largest space, or a new sequence, with part of a text; return the rest."""
        size = len(text.input_ids)
        space = self._free[-1][0] if self._free else 0
        part = min(space, size - _MIN_PIECE)
        if part < _MIN_PIECE:
            self.open()
            return text
        self._put(len(self._free) - 1, _slice(text, 0, part))
        return _slice(text, part, size)

    def _put(self, place: int, piece: Example) -> None:
        space, index = self._free.pop(place)
        self.contents[index].append(piece)
        if space > len(piece.input_ids):
            insort(self._free, (space - len(piece.input_ids), index))


def _slice(example: Example, start: int, end: int) -> Example:
    part = slice(start, end)
    return replace(example, input_ids=example.input_ids[part], labels=example.labels[part])
