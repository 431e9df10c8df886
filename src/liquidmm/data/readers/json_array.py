"""The items of a JSON array one after the other, whatever the size of the file.

Contract: the items equal those of `json.load`. In memory are one item and one chunk of the file. An
array that is not valid JSON is an error at the item where that shows, because nothing behind it can
be told apart any more. Bytes that are not UTF-8 become half characters (U+DC80 to U+DCFF), so they
spoil the item they stand in and no other.
"""

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO, cast

from liquidmm.errors import DataError

CHUNK = 2**20
"""Characters read at once."""

_BLANKS = " \t\n\r"
_CUT = 16
"""An error this near to the end of what was read may come from a token cut in two; the longest
token outside of strings and numbers has 9 characters, the longest escape in a string 12."""


def array_items(
    stream: BinaryIO, where: str, chunk: int | None = None, *, first: int = 0, start: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yield the items of the array that a file holds.

    Args:
        stream: File in UTF-8 that holds one JSON array and nothing else; at its start or an item.
        where: Name of the file, for messages.
        chunk: Characters to read at once, 1 or more; None: `CHUNK`.
        first: Index of the item that the stream stands at; 0 at the start of the file.
        start: Byte that the stream stands at.

    Yields:
        The byte that the item begins at, and the parsed item, in order.

    Raises:
        DataError: It is no JSON array from some item on; the message names file and item.
        OSError: The file can't be read.
    """
    index = first
    try:
        buffered = io.BufferedReader(cast(io.RawIOBase, stream))
        if not first and buffered.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
            start += len(buffered.read(len(BOM_UTF8)))  # some editors put this mark at the start
        text = io.TextIOWrapper(buffered, "utf-8", "surrogateescape", newline="")
        window = _Window(text, chunk or CHUNK, start)
        if not first:
            window.skip("[", "the start of an array")
        while index == first > 0 or window.more(first=index == 0):
            place = window.place()
            yield place, window.item()
            index += 1
        window.finish()
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, _BrokenError) else f"not valid JSON ({error})"
        raise DataError(
            f"{where}[{index}]: {what}. From here on the file can't be read; mend it or download "
            "it again."
        ) from error


class _BrokenError(ValueError):
    """What is wrong with the array, and where."""


class _Window:
    """The part of the file that is in memory, and the place in it that comes next."""

    def __init__(self, file: TextIO, chunk: int, start: int) -> None:
        self._file = file
        self._chunk = chunk
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._place = 0
        self._counted = 0  # place up to which bytes are counted
        self._bytes = start  # byte of the file that this is
        self._ended = False

    def place(self) -> int:
        """Step over blanks; return the byte of the file that comes next."""
        self._next()
        self._count()
        return self._bytes

    def skip(self, wanted: str, name: str) -> None:
        """Step over one character that must come next."""
        if self._next() != wanted:
            raise self._broken(f"Expecting {name}", self._place)
        self._place += 1

    def more(self, *, first: bool) -> bool:
        """Step over what stands before an item, or over the end of the array."""
        if self._next() == "]":
            self._place += 1
            return False
        if not first:
            self.skip(",", "',' or ']'")
        return True

    def item(self) -> Any:
        """Parse the next item; more is read until it is whole."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                unterminated = error.msg.startswith("Unterminated string")
                if not (unterminated or self._near_end(error.pos)):
                    raise self._broken(error.msg, error.pos) from error
                if not self._read():
                    raise self._broken(error.msg, error.pos, cut=unterminated) from error
                continue
            # "12" may be the start of "123" or "12.5e3": only what follows shows that it is whole
            if self._near_end(end) and self._read():
                continue
            self._place = end
            return value

    def finish(self) -> None:
        """Refuse anything but blanks up to the end of the file."""
        if self._next():
            raise self._broken("Text after the end of the array", self._place)

    def _next(self) -> str:
        """Step over blanks; return the character that comes next, or "" at the end of the file."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _BLANKS:
                    return self._text[self._place]
                self._place += 1
            if not self._read():
                return ""

    def _read(self) -> bool:
        """Drop what is done with and read on: as much again as is kept, so long items stay cheap.

        Returns:
            Whether there was more.
        """
        if self._ended:
            return False
        kept = self._text[self._place :]
        new = self._file.read(max(self._chunk, len(kept)))
        if not new:
            self._ended = True
            return False
        self._count()
        self._text, self._place, self._counted = kept + new, 0, 0
        return True

    def _count(self) -> None:
        self._bytes = self._byte(self._place)
        self._counted = self._place

    def _byte(self, place: int) -> int:
        passed = self._text[self._counted : place]
        return self._bytes + len(passed.encode("utf-8", "surrogateescape"))

    def _near_end(self, place: int) -> bool:
        return place >= len(self._text) - _CUT

    def _broken(self, what: str, place: int, *, cut: bool = False) -> _BrokenError:
        if cut or place >= len(self._text):
            return _BrokenError("the file ends before the array does")
        what = what.rstrip(": ").removesuffix(" at")  # json's own messages end in these
        return _BrokenError(f"not valid JSON ({what} at byte {self._byte(place)})")
