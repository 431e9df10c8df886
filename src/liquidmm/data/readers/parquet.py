"""Parquet files, and the rows of Arrow batches.

Only the footer is read to divide a file. Only the needed columns are read, a few megabytes at a
time, and images stay encoded. If rows cannot be read, this is reported once and reading continues
with the next row group. Text that is not UTF-8 affects only its own row.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from liquidmm.data.readers.chunks import FileRange, RawRecord, index_range, rejected, unreadable
from liquidmm.data.readers.files import File, open_raw, permanent_reason

_MAX_RANGES = 32  # per row group; each one decodes the group from its start
_BUFFER = 2**20
_BATCH_BYTES = 2**22
_MAX_BATCH_ROWS = 1024

_ERRORS = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """Columns and row groups of a file."""

    columns: frozenset[str]
    """Names of the columns; nested fields are `outer.inner`."""
    groups: tuple[int, ...]
    """Rows in each row group."""


def cut(name: str, footer: Footer | None, records: int) -> Iterator[FileRange]:
    """Divide a file into ranges of about `records` rows, at row groups where possible."""
    if footer is None:
        yield FileRange(file=name)  # the error is reported when the file is read
        return
    row = start = 0
    for size in footer.groups:
        if row > start and row + size > start + records:
            yield index_range(name, start, row)
            start = row
        row += size
        step = max(records, -(-size // _MAX_RANGES))
        while row - start > step:
            yield index_range(name, start, start + step)
            start += step
    if row > start:
        yield index_range(name, start, row)


def read(rows: FileRange, columns: Collection[str]) -> Iterator[RawRecord]:
    """Yield the rows of a range with the existing columns among `columns`."""
    try:
        with (
            open_raw(rows.file) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            names = [name for name in file.schema_arrow.names if name in columns]
            yield from _records(file, names, rows)
    except _ERRORS as error:
        reason = permanent_reason(rows.file, error)
        where = f"{rows.file}[{rows.start}]"
        yield unreadable(where, rows.start, f"not readable as Parquet ({reason})")


def batch_rows(rows: int, size: int) -> int:
    """Return the rows of a batch that needs little memory, given the rows and bytes of a table."""
    return min(max(_BATCH_BYTES * rows // max(size, 1), 1), _MAX_BATCH_ROWS)


def column_names(fields: Iterable[pa.Field]) -> Iterator[str]:
    """Yield the names of columns, and of nested fields as `outer.inner`."""
    for column in fields:
        yield column.name
        if pa.types.is_struct(column.type):
            inner = (column.type.field(n) for n in range(column.type.num_fields))
            yield from (f"{column.name}.{name}" for name in column_names(inner))


def batch_records(batch: pa.RecordBatch | pa.Table, name: str, first: int) -> Iterator[RawRecord]:
    """Yield the rows of a batch, whose first row has the index `first` in the file `name`."""
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            problem = f"not UTF-8 ({error.reason} at byte {error.start}). Correct the row."
            yield rejected(f"{name}[{first}]", first, problem)
            return
        for index in range(len(batch)):  # find the invalid row
            yield from batch_records(batch.slice(index, 1), name, first + index)
        return
    for index, value in enumerate(values, start=first):
        yield RawRecord(where=f"{name}[{index}]", line=index, value=value)


def read_footer(file: File) -> Footer | None:
    """Read the footer of a file; None if it is broken."""
    try:
        with open_raw(file.name) as stream, pq.ParquetFile(stream) as opened:
            metadata = opened.metadata
            groups = (metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            return Footer(
                columns=frozenset(column_names(opened.schema_arrow)), groups=tuple(groups)
            )
    except _ERRORS as error:
        permanent_reason(file.name, error)
        return None


def _records(file: pq.ParquetFile, names: list[str], rows: FileRange) -> Iterator[RawRecord]:
    first = 0
    for group in range(file.num_row_groups):
        after = first + file.metadata.row_group(group).num_rows
        row = max(first, rows.start)
        stop = after if rows.stop is None else min(after, rows.stop)
        try:
            for batch, start in _batches(file, group, names, range(row - first, stop - first)):
                for record in batch_records(batch, rows.file, first + start):
                    yield record
                    row += 1
        except _ERRORS as error:
            problem = (
                f"not readable as Parquet ({permanent_reason(rows.file, error)}). Rows {row} to "
                f"{stop - 1} are lost; download the file again."
            )
            yield rejected(f"{rows.file}[{row}]", row, problem, rest_lost=True)
        first = after


def _batches(
    file: pq.ParquetFile, group: int, names: list[str], rows: range
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield rows of a row group in batches, each with the index of its first row."""
    if not rows:
        return
    metadata = file.metadata.row_group(group)
    size = batch_rows(metadata.num_rows, metadata.total_byte_size)
    before = 0
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=names):
        after = before + len(batch)
        start, stop = max(rows.start, before), min(rows.stop, after)
        if start < stop:
            yield batch.slice(start - before, stop - start), start
        if after >= rows.stop:
            return
        before = after
