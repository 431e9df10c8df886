"""JSON Lines: one JSON object per line.

A plain file is divided at line ends without parsing. Every line that is not blank is a record, but
blank lines count. Memory use is one line.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from liquidmm.data.readers.chunks import (
    FileRange,
    RawRecord,
    cut_uncompressed,
    rejected,
    unreadable,
)
from liquidmm.data.readers.files import File, open_file, permanent_reason

MAX_LINE_BYTES = 2**28
"""Longer lines are rejected to limit memory use."""

READ_BYTES = 2**22
"""Bytes to read at once while dividing a file."""

_NEWLINE = ord("\n")


def cut(file: File, records: int) -> Iterator[FileRange]:
    """Divide a file into ranges of `records` lines."""
    return cut_uncompressed(file, records, _cut)


def read(lines: FileRange) -> Iterator[RawRecord]:
    """Yield the records of a range of lines."""
    number = lines.first
    try:
        with open_file(lines.file) as stream:
            if lines.start:
                stream.seek(lines.start)
            for line in _lines(stream, lines):
                if line.strip():
                    yield _record(line, f"{lines.file}:{number}", number)
                number += 1
        if number == lines.first:
            problem = "is empty. Download it again or remove it from the source."
            yield rejected(lines.file, 0, problem, rest_lost=True)
    except OSError as error:
        reason = permanent_reason(lines.file, error)
        yield unreadable(f"{lines.file}:{number}", number, f"cannot be read ({reason})")


def _cut(stream: BinaryIO, name: str, records: int) -> Iterator[FileRange]:
    start = offset = 0  # first byte of the range and of the block
    first = line = 1  # numbers of the lines at these bytes
    last = b""
    while block := stream.read(READ_BYTES):
        newlines = block.count(b"\n")
        if line + newlines >= first + records:
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == _NEWLINE)
            for end in ends[first + records - line - 1 :: records]:
                stop = offset + int(end) + 1
                yield FileRange(file=name, start=start, stop=stop, first=first, count=records)
                start, first = stop, first + records
        line += newlines
        offset += len(block)
        last = block[-1:]
    if start < offset:
        # the last line may have no newline
        count = line - first + (last != b"\n")
        yield FileRange(file=name, start=start, stop=offset, first=first, count=count)


def _lines(stream: BinaryIO, lines: FileRange) -> Iterator[bytes]:
    """Yield the lines of a range; truncate a line that is too long to the limit plus one byte."""
    offset = lines.start
    while lines.stop is None or offset < lines.stop:
        line = piece = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        while len(piece) > MAX_LINE_BYTES and not piece.endswith(b"\n"):
            offset += len(piece)
            piece = stream.readline(MAX_LINE_BYTES + 1)
        offset += len(piece)
        yield line


def _record(line: bytes, where: str, number: int) -> RawRecord:
    if len(line) - line.endswith(b"\n") > MAX_LINE_BYTES:
        problem = f"longer than {MAX_LINE_BYTES} bytes. Shorten or remove the line."
        return rejected(where, number, problem)
    try:
        return RawRecord(where=where, line=number, value=json.loads(line))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
    except (ValueError, RecursionError) as error:
        # most often a line that a full disk truncated
        problem = f"not valid JSON ({error}). Correct the line."
    return rejected(where, number, problem)
