"""Parquet: rows as mappings, pictures as the bytes they are stored in.

Contract: `footers` reads the footers alone, and `spans` cuts by them. `items` yields every row.
Only the wanted columns are unpacked, some megabytes at a time. Rows that can't be unpacked are
said, and the next row group is read.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from liquidmm.data.readers import arrow
from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.files import File, blame, open_file

_PIECES = 32  # spans that one row group is cut into; each unpacks the group from its start
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


def spans(name: str, footer: Footer | None, records: int) -> Iterator[FileRange]:
    """Cut a file into spans of about `records` rows, at row groups where that comes near."""
    if footer is None:
        yield FileRange(file=name)  # what is wrong with it is said where it is read
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


def items(span: FileRange, wanted: Collection[str] | None = None) -> Iterator[RawRecord]:
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
            f"{where}: not readable as Parquet ({blame(span.file, error)}). The file is lost from "
            "here on; download it again."
        )
        yield RawRecord(where=where, line=span.start, problem=problem, broken=True)


def _footer(file: File) -> Footer | None:
    try:
        with open_file(file.name) as stream, pq.ParquetFile(stream) as opened:
            metadata = opened.metadata
            groups = (metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            return Footer(
                columns=frozenset(arrow.columns(opened.schema_arrow)), groups=tuple(groups)
            )
    except _ERRORS as error:
        blame(file.name, error)
        return None


def _items(file: pq.ParquetFile, names: list[str], span: FileRange) -> Iterator[RawRecord]:
    first = 0
    for group in range(file.num_row_groups):
        after = first + file.metadata.row_group(group).num_rows
        row = max(first, span.start)
        stop = after if span.stop is None else min(after, span.stop)
        try:
            for batch, start in _batches(file, group, names, range(row - first, stop - first)):
                for item in arrow.items(batch, span.file, first + start):
                    yield item
                    row += 1
        except _ERRORS as error:
            where = f"{span.file}[{row}]"
            problem = (
                f"{where}: not readable as Parquet ({blame(span.file, error)}). Rows {row} to "
                f"{stop - 1} are lost; download the file again."
            )
            yield RawRecord(where=where, line=row, problem=problem, broken=True)
        first = after


def _batches(
    file: pq.ParquetFile, group: int, names: list[str], rows: range
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield rows of a row group, and the index in it of the first of them."""
    if not rows:
        return
    metadata = file.metadata.row_group(group)
    size = arrow.batch_rows(metadata.num_rows, metadata.total_byte_size)
    before = 0
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=names):
        after = before + len(batch)
        start, stop = max(rows.start, before), min(rows.stop, after)
        if start < stop:
            yield batch.slice(start - before, stop - start), start
        if after >= rows.stop:
            return
        before = after


def _span(name: str, start: int, stop: int) -> FileRange:
    return FileRange(file=name, start=start, stop=stop, first=start, count=stop - start)
