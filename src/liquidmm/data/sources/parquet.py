"""Parquet: rows as mappings, pictures as the bytes they are stored in.

Contract: `footers` reads the footers alone, and `spans` cuts by them. `items` yields every row.
Only the wanted columns are unpacked, some megabytes at a time. Rows that can't be unpacked are
said, and the next row group is read.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from liquidmm.data.sources.files import File, open_file, reason
from liquidmm.data.sources.part import Item, Span

_BATCH_BYTES = 2**22  # of a batch as it is unpacked
_MOST_ROWS = 1024  # rows of a batch
_PIECES = 8  # spans that one row group is cut into; each unpacks the group from its start
_BUFFER = 2**20
_THREADS = 16

_ERRORS = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What the end of a file says about it."""

    columns: frozenset[str]
    """Names of the columns, and of what lies in them as `outer.inner`."""
    groups: tuple[int, ...]
    """Rows in each row group."""


def footers(files: Sequence[File]) -> list[Footer | None]:
    """Read the footers of files, several at once; a broken file has none."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_footer, files))


def spans(name: str, footer: Footer | None, records: int) -> Iterator[Span]:
    """Cut a file into spans of about `records` rows, at row groups where that comes near."""
    if footer is None:
        yield Span(file=name)  # what is wrong with it is said where it is read
        return
    row = start = 0
    for size in footer.groups:
        if row > start and row + size > start + records:
            yield _span(name, start, row)
            start = row
        row += size
        step = max(records, -(-size // _PIECES))
        while row - start > step:
            yield _span(name, start, start + step)
            start += step
    if row > start:
        yield _span(name, start, row)


def items(span: Span, wanted: Collection[str] | None = None) -> Iterator[Item]:
    """Yield the rows of a span.

    Args:
        span: Rows of one file.
        wanted: Columns to read, of those there are; None reads all.
    """
    try:
        with (
            open_file(span.file) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            names = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
            yield from _items(file, names, span)
    except _ERRORS as error:
        where = f"{span.file}[{span.start}]"
        problem = (
            f"{where}: not readable as Parquet ({reason(error)}). The file is lost from here on; "
            "download it again."
        )
        yield Item(where=where, line=span.start, problem=problem, broken=True)


def _footer(file: File) -> Footer | None:
    try:
        with open_file(file.name) as stream, pq.ParquetFile(stream) as opened:
            metadata = opened.metadata
            groups = (metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            return Footer(columns=frozenset(_paths(opened.schema_arrow)), groups=tuple(groups))
    except _ERRORS:
        return None


def _paths(fields: Iterable[pa.Field]) -> Iterator[str]:
    for column in fields:
        yield column.name
        if pa.types.is_struct(column.type):
            inner = (column.type.field(n) for n in range(column.type.num_fields))
            yield from (f"{column.name}.{name}" for name in _paths(inner))


def _items(file: pq.ParquetFile, names: list[str], span: Span) -> Iterator[Item]:
    first = 0
    for group in range(file.num_row_groups):
        after = first + file.metadata.row_group(group).num_rows
        row = max(first, span.start)
        stop = after if span.stop is None else min(after, span.stop)
        try:
            for value in _values(file, group, names, range(row - first, stop - first)):
                yield _item(value, f"{span.file}[{row}]", row)
                row += 1
        except _ERRORS as error:
            where = f"{span.file}[{row}]"
            problem = (
                f"{where}: not readable as Parquet ({reason(error)}). Rows {row} to {stop - 1} are "
                "lost; download the file again."
            )
            yield Item(where=where, line=row, problem=problem, broken=True)
        first = after


def _values(
    file: pq.ParquetFile, group: int, names: list[str], rows: range
) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yield rows of a row group, or the reason why one can't be had as text."""
    if not rows:
        return
    metadata = file.metadata.row_group(group)
    size = _BATCH_BYTES * metadata.num_rows // max(metadata.total_byte_size, 1)
    size = min(max(size, 1), _MOST_ROWS)
    before = 0
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=names):
        after = before + len(batch)
        start, stop = max(rows.start, before), min(rows.stop, after)
        if start < stop:
            yield from _unpacked(batch.slice(start - before, stop - start))
        if after >= rows.stop:
            return
        before = after


def _unpacked(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # one bad text spoils the batch: find it
        for index in range(len(batch)):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def _item(value: dict[str, Any] | UnicodeDecodeError, where: str, row: int) -> Item:
    if isinstance(value, UnicodeDecodeError):
        problem = f"{where}: not UTF-8 ({value.reason} at byte {value.start}). Correct the row."
        return Item(where=where, line=row, problem=problem)
    return Item(where=where, line=row, value=value)


def _span(name: str, start: int, stop: int) -> Span:
    return Span(file=name, start=start, stop=stop, first=start, count=stop - start)
