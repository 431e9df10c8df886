"""Examples of any length become rows of one fixed length, a window of examples at a time.

Contract: the rows of a window depend on its examples and the seed alone. They are filled by
best fit, the longest example first; pictures are never split, text without pictures is cut where
that fills the end of a row. Documents of a row are told apart by `position_ids`, which start again
at 0 with each of them; the model must be run with these and without an attention mask. Nothing
precedes the first id of a document, so it never carries a label. Padding is a document of its own,
without labels.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from liquidmm.data.examples import IGNORE, TASKS, Example, Ids
from liquidmm.errors import ConfigError, DataError

PADDING_TASK = -1
"""Task id of padding."""

_LEAST = 16
"""Ids of the shortest piece that text is cut into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How rows are filled."""

    length: int
    """Ids in a row."""
    context: int = 0
    """Ids of the longest sequence, at most those of a row; 0: as many. Longer text is cut."""
    window: int = 512
    """Examples that are packed together; more fill better and take longer to begin."""
    too_long: Literal["error", "leave_out"] = "error"
    """What is done with an example that has a picture and is longer than `context`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.length < 1:
            raise ConfigError(f"length: must be at least 1 ({self.length}).")
        if not 0 <= self.context <= self.length:
            raise ConfigError(
                f"context: must be from 0 to the length of a row, {self.length} ({self.context})."
            )
        if self.window < 1:
            raise ConfigError(f"window: must be at least 1 ({self.window}).")

    @property
    def longest(self) -> int:
        """Ids of the longest sequence."""
        return self.context or self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """One row for training."""

    input_ids: Ids
    """Ids, (T,), int32."""
    labels: Ids
    """The same ids where they are learnt, `IGNORE` elsewhere; (T,), int32; not shifted."""
    position_ids: Ids
    """Place in the document, from 0; (T,), int32."""
    task_ids: Ids
    """Place of the document's task in `TASKS`, `PADDING_TASK` for padding; (T,), int32."""
    keys: tuple[str, ...] = ()
    """Names of the records in it, in order."""

    @property
    def filled(self) -> int:
        """Number of ids that are not padding."""
        return int((self.task_ids != PADDING_TASK).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Rows that were packed together; each is laid out when it is asked for."""

    contents: list[list[Example]]
    """The examples of each row."""
    config: PackingConfig
    """How they were packed."""
    pad_id: int
    """Id of padding; any id will do, as it is never learnt nor seen."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Name and length of each example that was too long."""

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> PackedSequence:
        return _join(self.contents[index], self.config, self.pad_id)

    def __iter__(self) -> Iterator[PackedSequence]:
        return (self[index] for index in range(len(self)))


def pack(
    examples: Iterable[Example],
    config: PackingConfig,
    pad_id: int = 0,
    seed: Sequence[int] = (0,),
) -> Window:
    """Pack a window of examples into rows.

    Args:
        examples: What to pack.
        config: How.
        pad_id: Id of padding.
        seed: Decides the order of the rows.

    Returns:
        The rows, in an order drawn from the seed; one or two of them are emptier than the others.

    Raises:
        DataError: An example with a picture is longer than the longest sequence and is not to be
            left out; the message names the record and both lengths.
    """
    pieces: list[Example] = []
    left_out: list[tuple[str, int]] = []
    for example in examples:
        parts = cut(example, config)
        pieces += parts
        if not parts:
            left_out.append((example.key, len(example.input_ids)))
    rows = _fill(pieces, config.length)
    order = np.random.default_rng(seed).permutation(len(rows))
    return Window(
        contents=[rows[place] for place in order],
        config=config,
        pad_id=pad_id,
        left_out=tuple(left_out),
    )


def cut(example: Example, config: PackingConfig) -> list[Example]:
    """Cut an example into pieces that fit; most stay whole.

    Returns:
        The pieces, in order; none when it is to be left out.

    Raises:
        DataError: It holds a picture, is longer than the longest sequence and is not to be left
            out; the message names the record and both lengths.
    """
    size, longest = len(example.input_ids), config.longest
    if size <= longest:
        return [example]
    if example.splittable:
        return [_part(example, start, start + longest) for start in range(0, size, longest)]
    if config.too_long == "leave_out":
        return []
    raise DataError(
        f"{example.key or 'example'}: {size} ids, rows have {longest}. Use longer rows, smaller "
        "pictures or shorter texts, or leave such records out (data.too_long)."
    )


def _fill(pieces: list[Example], length: int) -> list[list[Example]]:
    """Fill rows: what stays whole first, then text that fits as it is, then text that is cut."""
    gaps = _Gaps(length)
    longest_first = sorted(pieces, key=lambda piece: -len(piece.input_ids))
    for piece in longest_first:
        if not piece.splittable and not gaps.put_if_fits(piece):
            gaps.open()
            gaps.put_if_fits(piece)
    texts = [piece for piece in longest_first if piece.splittable]
    for text in [text for text in texts if not gaps.put_if_fits(text)]:
        rest = text
        while not gaps.put_if_fits(rest):
            rest = gaps.put_a_part(rest)
    return gaps.rows


class _Gaps:
    """Rows by the space that is left in them."""

    def __init__(self, length: int) -> None:
        self.rows: list[list[Example]] = []
        self._length = length
        self._sorted: list[tuple[int, int]] = []  # space and number of a row, ascending

    def open(self) -> None:
        """Begin a row."""
        self._sorted.append((self._length, len(self.rows)))
        self.rows.append([])

    def put_if_fits(self, piece: Example) -> bool:
        """Put a piece where it leaves the least space; False where it fits into no row."""
        place = bisect_left(self._sorted, (len(piece.input_ids), -1))
        if place == len(self._sorted):
            return False
        self._add(place, piece)
        return True

    def put_a_part(self, text: Example) -> Example:
        """Put as much of a text as goes into the largest space, or open a row; return the rest."""
        size = len(text.input_ids)
        space = self._sorted[-1][0] if self._sorted else 0
        part = min(space, size - _LEAST)
        if part < _LEAST:
            self.open()
            return text
        self._add(len(self._sorted) - 1, _part(text, 0, part))
        return _part(text, part, size)

    def _add(self, place: int, piece: Example) -> None:
        space, number = self._sorted.pop(place)
        self.rows[number].append(piece)
        if space > len(piece.input_ids):
            insort(self._sorted, (space - len(piece.input_ids), number))


def _part(example: Example, start: int, end: int) -> Example:
    return replace(
        example, input_ids=example.input_ids[start:end], labels=example.labels[start:end]
    )


def _join(examples: list[Example], config: PackingConfig, pad_id: int) -> PackedSequence:
    length = config.length
    input_ids = np.full(length, pad_id, dtype=np.int32)
    labels = np.full(length, IGNORE, dtype=np.int32)
    position_ids: np.ndarray[Any, np.dtype[np.int32]] = np.zeros(length, dtype=np.int32)
    task_ids = np.full(length, PADDING_TASK, dtype=np.int32)
    start = 0
    for example in examples:
        end = start + len(example.input_ids)
        input_ids[start:end] = example.input_ids
        labels[start + 1 : end] = example.labels[1:]
        position_ids[start:end] = np.arange(end - start)
        task_ids[start:end] = TASKS.index(example.task)
        start = end
    # padding too stays within what the model has positions for
    position_ids[start:] = np.arange(length - start) % config.longest
    return PackedSequence(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        task_ids=task_ids,
        keys=tuple(example.key for example in examples),
    )
