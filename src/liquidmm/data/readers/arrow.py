"""Rows of Arrow batches as items.

Contract: a row becomes the mapping that `to_pylist` makes of it. A text that is not UTF-8 spoils
its own row alone.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from liquidmm.data.readers.chunks import RawRecord

_BATCH_BYTES = 2**22  # of a batch as it is unpacked
_MOST_ROWS = 1024  # of a batch


def batch_rows(rows: int, size: int) -> int:
    """Return how many rows of a table to unpack at once, so that memory stays flat.

    Args:
        rows: Rows of the table.
        size: Bytes of the table.
    """
    return min(max(_BATCH_BYTES * rows // max(size, 1), 1), _MOST_ROWS)


def columns(fields: Iterable[pa.Field]) -> Iterator[str]:
    """Yield the names of columns, and of what lies in them as `outer.inner`."""
    for column in fields:
        yield column.name
        if pa.types.is_struct(column.type):
            inner = (column.type.field(n) for n in range(column.type.num_fields))
            yield from (f"{column.name}.{name}" for name in columns(inner))


def items(batch: pa.RecordBatch | pa.Table, name: str, first: int) -> Iterator[RawRecord]:
    """Yield the rows of a batch.

    Args:
        batch: The rows.
        name: The file, for `where`.
        first: Index of the first row in the file.
    """
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):  # find the row
            yield _item(batch.slice(index, 1), f"{name}[{first + index}]", first + index)
        return
    for index, value in enumerate(values, start=first):
        yield RawRecord(where=f"{name}[{index}]", line=index, value=value)


def _item(row: pa.RecordBatch | pa.Table, where: str, index: int) -> RawRecord:
    try:
        return RawRecord(where=where, line=index, value=row.to_pylist()[0])
    except UnicodeDecodeError as error:
        problem = f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Correct the row."
        return RawRecord(where=where, line=index, problem=problem)
