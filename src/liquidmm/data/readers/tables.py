"""CSV and TSV: one entry per row, under a row of names.

Contract: cells may hold line breaks inside quotes. `spans` reads the rows once to find where they
begin, and `items` reads a span from there. An empty cell is a missing field. A row with too many or
too few cells is refused, as is one with a quote out of place.
"""

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from liquidmm.data.readers.chunks import FileRange, RawRecord, spans_of_lines
from liquidmm.data.readers.files import File, blame, open_content, stem, suffix

_LONGEST = 2**28  # bytes of a line

_Row: TypeAlias = tuple[int, int, list[str] | csv.Error]  # byte and line where it begins; cells


def spans(file: File, records: int) -> Iterator[FileRange]:
    """Cut a file into spans of `records` rows."""
    return spans_of_lines(file, records, _cut)


def items(span: FileRange) -> Iterator[RawRecord]:
    """Yield the rows of a span."""
    line = span.first
    try:
        with open_content(span.file) as stream:
            rows = _rows(stream, span.file)
            _, line, names = next(rows, (0, 1, []))
            if isinstance(names, csv.Error) or not names or len(set(names)) < len(names):
                where = f"{span.file}:{line}"
                problem = f"{where}: no row of names that differ. Write one as the first row."
                yield RawRecord(where=where, line=line, problem=problem, broken=True)
                return
            if span.start:
                stream.seek(span.start)
                rows = _rows(stream, span.file, span.start, span.first)
            for byte, line, cells in rows:
                if span.stop is not None and byte >= span.stop:
                    return
                yield _item(names, cells, f"{span.file}:{line}", line)
    except OSError as error:
        where = f"{span.file}:{line}"
        problem = (
            f"{where}: can't be read on ({blame(span.file, error)}). The rest of the file is lost; "
            "mend it or download it again."
        )
        yield RawRecord(where=where, line=line, problem=problem, broken=True)


def _cut(stream: BinaryIO, name: str, records: int) -> Iterator[FileRange]:
    rows = _rows(stream, name)
    next(rows, None)
    start = first = held = 0
    for byte, line, _ in rows:
        if held == records:
            yield FileRange(file=name, start=start, stop=byte, first=first, count=held)
            held = 0
        if not held:
            start, first = byte, line
        held += 1
    if held:
        yield FileRange(file=name, start=start, first=first, count=held)


def _rows(stream: BinaryIO, name: str, start: int = 0, line: int = 1) -> Iterator[_Row]:
    """Yield the rows from a byte and a line on; empty ones are none."""
    lines = _Lines(stream, start, line)
    separator = "\t" if suffix(stem(name)) == ".tsv" else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        byte, line = lines.byte, lines.line
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield byte, line, error
            continue
        if cells:
            yield byte, line, cells


class _Lines:
    """The lines of a file as text; bytes that are not UTF-8 become half characters."""

    def __init__(self, stream: BinaryIO, byte: int, line: int) -> None:
        self._stream = stream
        self.byte = byte
        self.line = line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(_LONGEST)
        if not line:
            raise StopIteration
        start = len(BOM_UTF8) if not self.byte and line.startswith(BOM_UTF8) else 0
        self.byte += len(line)
        self.line += 1
        return line[start:].decode(errors="surrogateescape")


def _item(names: list[str], cells: list[str] | csv.Error, where: str, line: int) -> RawRecord:
    if isinstance(cells, csv.Error):
        problem = f"{where}: not valid CSV ({cells}). Correct the row."
        return RawRecord(where=where, line=line, problem=problem)
    if len(cells) != len(names):
        problem = f"{where}: {len(cells)} cells for {len(names)} columns. Correct the row."
        return RawRecord(where=where, line=line, problem=problem)
    value = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return RawRecord(where=where, line=line, value=value)
