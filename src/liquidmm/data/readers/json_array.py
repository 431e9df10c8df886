"""JSON files that contain one array, such as the conversations of LLaVA and ShareGPT.

The items equal those of `json.load`. Memory use is one item and one block of the file. A syntax
error ends the array and is reported once; bytes that are not UTF-8 affect only their own item.

This module has its own parser because ijson does not report the positions of items, which ranges
need, and stops at NaN, at integers above 64 bits and at bytes that are not UTF-8.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from liquidmm.data.readers.chunks import FileRange, RawRecord, unreadable
from liquidmm.data.readers.files import File, is_compressed, open_file, permanent_reason
from liquidmm.errors import DataError

READ_BYTES = 2**20
"""Bytes to read at once."""

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_MARGIN = 16
"""An error this close to the end of the text may come from a truncated token: the longest token
outside strings and numbers has 9 characters, and the longest escape in a string has 12."""


def is_array(name: str) -> bool:
    """Whether a JSON file starts with an array instead of lines of objects."""
    try:
        with open_file(name) as stream:
            start = stream.read(4096)
    except OSError as error:
        permanent_reason(name, error)
        return False  # the error is reported when the file is read
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def cut(file: File, records: int) -> Iterator[FileRange]:
    """Divide a file into ranges of `records` items. This parses the whole file."""
    if is_compressed(file.name):
        yield FileRange(file=file.name)
        return
    start = first = index = 0
    complete = False
    try:
        with open_file(file.name) as stream:
            for offset, _ in array_items(stream, file.name):
                if index == first + records:
                    yield FileRange(
                        file=file.name, start=start, stop=offset, first=first, count=records
                    )
                    start, first = offset, index
                index += 1
        complete = True
    except (DataError, OSError) as error:
        permanent_reason(file.name, error)  # the error is reported when the last range is read
    if index > first or not complete:
        count = index - first if complete else None
        yield FileRange(file=file.name, start=start, first=first, count=count)


def read(items: FileRange) -> Iterator[RawRecord]:
    """Yield the items of a range."""
    index = items.first
    try:
        with open_file(items.file) as stream:
            if items.start:
                stream.seek(items.start)
            found = array_items(stream, items.file, first=items.first, start=items.start)
            for offset, value in found:
                if items.stop is not None and offset >= items.stop:
                    return
                yield RawRecord(where=f"{items.file}[{index}]", line=index, value=value)
                index += 1
    except DataError as error:
        where = f"{items.file}[{index}]"
        yield RawRecord(where=where, line=index, problem=str(error), rest_lost=True)
    except OSError as error:
        reason = permanent_reason(items.file, error)
        yield unreadable(f"{items.file}[{index}]", index, f"cannot be read ({reason})")


def array_items(
    stream: BinaryIO, where: str, read_bytes: int | None = None, *, first: int = 0, start: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yield the byte offset and the value of each item of an array.

    The stream is at its start, or at byte `start`, where the item `first` begins.

    Raises:
        DataError: An item cannot be parsed; the message contains the file and item.
        OSError: The file cannot be read.
    """
    index = first
    try:
        text = _Text(stream, read_bytes or READ_BYTES, start)
        if not first:
            if text.peek() == "\ufeff":
                text.expect("\ufeff", "a byte order mark")
            text.expect("[", "the start of an array")
        ended = not first and text.peek() == "]"
        while not ended:
            text.peek()
            yield text.offset, text.item()
            index += 1
            ended = text.peek() == "]"
            if not ended:
                text.expect(",", "',' or ']'")
        text.expect("]", "']'")
        if text.peek():
            raise text.error("Text after the end of the array", text.at)
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, _ArrayError) else f"not valid JSON ({error})"
        raise DataError(
            f"{where}[{index}]: {what}. The rest of the file is lost; repair it or download it "
            "again."
        ) from error


class _ArrayError(ValueError):
    """A syntax error with its byte offset."""


class _Text:
    """The decoded part of the file that is in memory, and the position in it."""

    def __init__(self, stream: BinaryIO, read_bytes: int, start: int) -> None:
        self._stream = stream
        self._read_bytes = read_bytes
        # bytes that are not UTF-8 become U+DC80 to U+DCFF, which the check of the fields rejects
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder()
        self._text = ""
        self.at = 0
        self.offset = start
        """Byte offset in the file of position `at`."""

    def peek(self) -> str:
        """Skip whitespace and return the next character, or "" at the end of the file."""
        while True:
            match = _WHITESPACE.match(self._text, self.at)
            self._move(match.end() if match else self.at)
            if self.at < len(self._text) or not self._read():
                return self._text[self.at : self.at + 1]

    def expect(self, character: str, name: str) -> None:
        """Skip one character that must come next."""
        if self.peek() != character:
            raise self.error(f"Expecting {name}", self.at)
        self._move(self.at + 1)

    def item(self) -> Any:
        """Parse the item at the position, reading more of the file until it is complete."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string")
                if (cut or self._is_near_end(error.pos)) and self._read():
                    continue
                raise self.error(error.msg, len(self._text) if cut else error.pos) from error
            # "12" may be the start of "123" or "12.5e3", so the next character is needed
            if self._is_near_end(end) and self._read():
                continue
            self._move(end)
            return value

    def error(self, message: str, at: int) -> _ArrayError:
        if at >= len(self._text):
            return _ArrayError("the file ends before the array does")
        self._move(at)
        # json's own messages end in these
        message = message.rstrip(": ").removesuffix(" at")
        return _ArrayError(f"not valid JSON ({message} at byte {self.offset})")

    def _read(self) -> bool:
        """Drop the parsed text and read more of the file; return whether there was more.

        Reading at least as much as is kept makes long items cheap.
        """
        kept, new, block = self._text[self.at :], "", b"-"
        while block and not new:
            block = self._stream.read(max(self._read_bytes, len(kept)))
            new = self._utf8.decode(block, final=not block)
        if new:
            self._text, self.at = kept + new, 0
        return bool(new)

    def _move(self, to: int) -> None:
        self.offset += len(self._text[self.at : to].encode("utf-8", "surrogateescape"))
        self.at = to

    def _is_near_end(self, at: int) -> bool:
        return at >= len(self._text) - _MARGIN
