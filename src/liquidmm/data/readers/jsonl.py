"""JSONL: one JSON object per line, plain or compressed.

Contract: `spans` cuts a plain file at lines without parsing them; a compressed one is a span of its
own. `items` yields every line but blank ones, which count all the same. In memory is one line.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from liquidmm.data.readers.chunks import FileRange, RawRecord, spans_of_lines
from liquidmm.data.readers.files import File, blame, open_content

LONGEST = 2**28
"""Bytes of the longest line that is read; a longer one is refused, so memory stays flat."""

_CHUNK = 2**22
_NEWLINE = ord("\n")


def spans(file: File, records: int) -> Iterator[FileRange]:
    """Cut a file into spans of `records` lines."""
    return spans_of_lines(file, records, _cut)


def items(span: FileRange) -> Iterator[RawRecord]:
    """Yield what stands in the lines of a span."""
    number = span.first
    try:
        with open_content(span.file) as stream:
            if span.start:
                stream.seek(span.start)
            for line in _lines(stream, span):
                if line.strip():
                    yield _item(line, f"{span.file}:{number}", number)
                number += 1
        if number == span.first:
            problem = f"{span.file}: the file is empty. Download it again or leave it out."
            yield RawRecord(where=span.file, line=0, problem=problem, broken=True)
    except OSError as error:
        where = f"{span.file}:{number}"
        problem = (
            f"{where}: can't be read ({blame(span.file, error)}). From here on the file is lost; "
            "mend it or download it again."
        )
        yield RawRecord(where=where, line=number, problem=problem, broken=True)


def _cut(stream: BinaryIO, name: str, records: int) -> Iterator[FileRange]:
    start = place = 0  # bytes before the span, before the chunk
    first = line = 1  # numbers of the lines that begin or go on there
    last = b""
    while chunk := stream.read(_CHUNK):
        newlines = chunk.count(b"\n")
        if line + newlines >= first + records:
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
            for end in ends[first + records - line - 1 :: records]:
                stop = place + int(end) + 1
                yield FileRange(file=name, start=start, stop=stop, first=first, count=records)
                start, first = stop, first + records
        line += newlines
        place += len(chunk)
        last = chunk[-1:]
    if start < place:
        # the last line may lack its newline
        count = line - first + (last != b"\n")
        yield FileRange(file=name, start=start, stop=place, first=first, count=count)


def _lines(stream: BinaryIO, span: FileRange) -> Iterator[bytes]:
    """Yield the lines of a span; of one that is too long only the first bytes, and one more."""
    place = span.start
    while span.stop is None or place < span.stop:
        line = piece = stream.readline(LONGEST + 1)
        if not line:
            return
        while len(piece) > LONGEST and not piece.endswith(b"\n"):
            place += len(piece)
            piece = stream.readline(LONGEST + 1)
        place += len(piece)
        yield line


def _item(line: bytes, where: str, number: int) -> RawRecord:
    if len(line) - line.endswith(b"\n") > LONGEST:
        problem = f"{where}: longer than {LONGEST} bytes. Cut it or leave it out."
        return RawRecord(where=where, line=number, problem=problem)
    try:
        return RawRecord(where=where, line=number, value=json.loads(line))
    except UnicodeDecodeError as error:
        problem = f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
    except (ValueError, RecursionError) as error:
        # a line cut in half by a full disk is the usual cause
        problem = f"{where}: not valid JSON ({error}). Correct the line."
    return RawRecord(where=where, line=number, problem=problem)
