"""Examples of any length become rows of one fixed length.

Contract: documents of a row are told apart by `position_ids`, which start again at 0 with each of
them; the model must be run with these and without an attention mask. No document is cut, except
text that is longer than a row. Nothing precedes the first id of a document, so it never carries a
label. Padding is a document of its own, without labels. The rows depend on the examples and their
order alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from liquidmm.data.render import IGNORE, TASKS, Example, Ids
from liquidmm.errors import DataError

PADDING_TASK = -1
"""Task id of padding."""

Ticket = TypeVar("Ticket")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
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


class Packer(Generic[Ticket]):
    """Fills rows from a small buffer: the oldest example first, then the largest that still fits.

    A ticket travels with each example, so that a caller can write down what waits in the buffer and
    make it again.
    """

    def __init__(self, length: int, pad_id: int = 0, lookahead: int = 64) -> None:
        """Start with an empty buffer.

        Args:
            length: Ids in a row.
            pad_id: Id of padding; any id will do, as it is never learnt nor seen.
            lookahead: Examples in a full buffer; more fill better and wait longer.
        """
        self.length = length
        self.lookahead = lookahead
        self.pad_id = pad_id
        self._waiting: list[tuple[Ticket, Example]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a row should be taken out before more is put in."""
        return len(self._waiting) >= self.lookahead

    @property
    def tickets(self) -> list[Ticket]:
        """Tickets of the waiting examples, the oldest first."""
        return [ticket for ticket, _ in self._waiting]

    def add(self, ticket: Ticket, example: Example) -> None:
        """Put in an example that fits a row; see `split` for those that may not.

        Raises:
            DataError: It is longer than a row.
        """
        _check_length(example, self.length)
        self._waiting.append((ticket, example))

    def take(self) -> Packed:
        """Take one row out.

        Raises:
            IndexError: The buffer is empty.
        """
        chosen = [self._waiting.pop(0)[1]]
        space = self.length - len(chosen[0].input_ids)
        while (index := self._best(space)) is not None:
            chosen.append(self._waiting.pop(index)[1])
            space -= len(chosen[-1].input_ids)
        return _join(chosen, self.length, self.pad_id)

    def _best(self, space: int) -> int | None:
        best, best_size = None, 0
        for index, (_, example) in enumerate(self._waiting):
            size = len(example.input_ids)
            if best_size < size <= space:
                best, best_size = index, size
        return best


def split(example: Example, length: int) -> list[Example]:
    """Cut an example into pieces of at most `length` ids; most stay whole.

    Raises:
        DataError: It holds a picture and is longer; the message names the record and both lengths.
    """
    size = len(example.input_ids)
    if size <= length:
        return [example]
    if not example.splittable:
        _check_length(example, length)
    return [
        replace(
            example,
            input_ids=example.input_ids[start : start + length],
            labels=example.labels[start : start + length],
        )
        for start in range(0, size, length)
    ]


def pack(
    examples: Iterable[Example], length: int, pad_id: int = 0, lookahead: int = 64
) -> Iterator[Packed]:
    """Pack examples into rows.

    Args:
        examples: What to pack, in order.
        length: Ids in a row.
        pad_id: Id of padding.
        lookahead: Examples that wait at most.

    Yields:
        Rows; the last ones are emptier.

    Raises:
        DataError: An example with a picture is longer than a row.
    """
    packer: Packer[None] = Packer(length, pad_id, lookahead)
    for example in examples:
        for piece in split(example, length):
            packer.add(None, piece)
        while packer.full:
            yield packer.take()
    while len(packer):
        yield packer.take()


def _check_length(example: Example, length: int) -> None:
    size = len(example.input_ids)
    if size > length:
        raise DataError(
            f"{example.key or 'example'}: {size} ids, rows have {length}. "
            "Use longer rows, smaller pictures or shorter texts."
        )


def _join(examples: list[Example], length: int, pad_id: int) -> Packed:
    input_ids = np.full(length, pad_id, dtype=np.int32)
    labels = np.full(length, IGNORE, dtype=np.int32)
    position_ids = np.zeros(length, dtype=np.int32)
    task_ids = np.full(length, PADDING_TASK, dtype=np.int32)
    start = 0
    for example in examples:
        end = start + len(example.input_ids)
        input_ids[start:end] = example.input_ids
        labels[start + 1 : end] = example.labels[1:]
        position_ids[start:end] = np.arange(end - start)
        task_ids[start:end] = TASKS.index(example.task)
        start = end
    position_ids[start:] = np.arange(length - start)
    return Packed(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        task_ids=task_ids,
        keys=tuple(example.key for example in examples),
    )
