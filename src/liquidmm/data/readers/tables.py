"""CSV and TSV files with a header row.

A file is read once to find where its rows begin because quoted cells can contain line breaks. An
empty cell is a missing field. A row with the wrong number of cells or a misplaced quote is
rejected.
"""

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from liquidmm.data.readers.chunks import (
    FileRange,
    RawRecord,
    cut_uncompressed,
    rejected,
    unreadable,
)
from liquidmm.data.readers.files import File, open_file, permanent_reason, stem, suffix

_MAX_LINE_BYTES = 2**28

_Row: TypeAlias = tuple[int, int, list[str] | csv.Error]
"""Byte offset and line where a row begins, and its cells."""


def cut(file: File, records: int) -> Iterator[FileRange]:
    """Divide a file into ranges of `records` rows."""
    return cut_uncompressed(file, records, _cut)


def read(rows: FileRange) -> Iterator[RawRecord]:
    """Yield the rows of a range."""
    line = rows.first
    try:
        with open_file(rows.file) as stream:
            found = _rows(stream, rows.file)
            _, line, names = next(found, (0, 1, []))
            if isinstance(names, csv.Error) or not names or len(set(names)) < len(names):
                problem = "expected a header row with distinct column names. Add it to the file."
                yield rejected(f"{rows.file}:{line}", line, problem, rest_lost=True)
                return
            if rows.start:
                stream.seek(rows.start)
                found = _rows(stream, rows.file, rows.start, rows.first)
            for offset, line, cells in found:
                if rows.stop is not None and offset >= rows.stop:
                    return
                yield _record(names, cells, f"{rows.file}:{line}", line)
    except OSError as error:
        reason = permanent_reason(rows.file, error)
        yield unreadable(f"{rows.file}:{line}", line, f"cannot be read ({reason})")


def _cut(stream: BinaryIO, name: str, records: int) -> Iterator[FileRange]:
    rows = _rows(stream, name)
    next(rows, None)
    start = first = count = 0
    for offset, line, _ in rows:
        if count == records:
            yield FileRange(file=name, start=start, stop=offset, first=first, count=count)
            count = 0
        if not count:
            start, first = offset, line
        count += 1
    if count:
        yield FileRange(file=name, start=start, first=first, count=count)


def _rows(stream: BinaryIO, name: str, start: int = 0, line: int = 1) -> Iterator[_Row]:
    """Yield the non-empty rows, starting at a byte offset and line."""
    lines = _Lines(stream, start, line)
    separator = "\t" if suffix(stem(name)) == ".tsv" else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        offset, line = lines.offset, lines.line
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield offset, line, error
            continue
        if cells:
            yield offset, line, cells


class _Lines:
    """The lines of a file as text; bytes that are not UTF-8 become surrogates."""

    def __init__(self, stream: BinaryIO, offset: int, line: int) -> None:
        self._stream = stream
        self.offset = offset
        self.line = line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(_MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        start = len(BOM_UTF8) if not self.offset and line.startswith(BOM_UTF8) else 0
        self.offset += len(line)
        self.line += 1
        return line[start:].decode(errors="surrogateescape")


def _record(names: list[str], cells: list[str] | csv.Error, where: str, line: int) -> RawRecord:
    if isinstance(cells, csv.Error):
        return rejected(where, line, f"not valid CSV ({cells}). Correct the row.")
    if len(cells) != len(names):
        problem = f"expected {len(names)} cells, got {len(cells)}. Correct the row."
        return rejected(where, line, problem)
    value = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return RawRecord(where=where, line=line, value=value)
