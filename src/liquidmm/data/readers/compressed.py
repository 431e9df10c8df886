"""Compressed files as what they hold.

Contract: `decompressed` gives a buffered stream of the content. When the file is cut off or
damaged, everything that can be unpacked before that place is delivered, and `DamagedError` follows.
"""

import io
import lzma
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import pyarrow as pa


class DamagedError(OSError):
    """Compressed data is cut off or damaged."""


COMPRESSED: Mapping[str, str] = MappingProxyType(
    {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}
)
"""Suffix of a file -> how it is compressed."""

_CODECS = {**COMPRESSED, ".tgz": "gzip"}
_BUFFER = 2**16
_ERRORS = (OSError, EOFError, lzma.LZMAError, pa.ArrowException)


def decompressed(name: str, open_raw: Callable[[], BinaryIO]) -> BinaryIO:
    """Open a file, decompressed where its name ends in one of `COMPRESSED` or .tgz.

    Args:
        name: The name that decides.
        open_raw: Opens the file as it stands, from its start.

    Raises:
        OSError: The file can't be opened.
    """
    codec = next((codec for end, codec in _CODECS.items() if name.endswith(end)), None)
    if codec is None:
        return open_raw()
    return cast(BinaryIO, io.BufferedReader(_Content(codec, open_raw), _BUFFER))


class _Content(io.RawIOBase):
    """The content as a raw stream that can't be rewound."""

    def __init__(self, codec: str, open_raw: Callable[[], BinaryIO]) -> None:
        super().__init__()
        self._codec = codec
        self._open_raw = open_raw
        self._place = 0
        self._broken: DamagedError | None = None
        self._raw, self._stream = self._opened()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._broken is not None:
            raise self._broken
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._raw.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            return cast(bytes, self._stream.read(size))
        except _ERRORS as error:
            self._raw.check()
            self._broken = DamagedError(f"compressed data is cut off or damaged: {error}")
            self._broken.__cause__ = error
        rest = self._rest(size)
        if not rest:
            raise self._broken
        return rest

    def _rest(self, size: int) -> bytes:
        """Return what lies between the last whole read and the damage, found byte by byte.

        A read that meets the damage loses what it had unpacked before.
        """
        self._stream.close()
        self._raw.close()
        self._raw, self._stream = self._opened()
        rest = bytearray()
        try:
            skipped = 0
            while skipped < self._place:
                skipped += len(self._stream.read(min(_BUFFER, self._place - skipped)))
            while len(rest) < size:
                rest += self._stream.read(1)
        except _ERRORS:
            self._raw.check()
        return bytes(rest)

    def _opened(self) -> tuple["_Raw", Any]:
        raw = _Raw(self._open_raw())
        if self._codec == "xz":
            return raw, lzma.LZMAFile(cast(BinaryIO, raw))
        return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self._codec)


class _Raw(io.RawIOBase):
    """The file as it stands; it remembers errors of its own, which say nothing about the data."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._inner = stream
        self._error: OSError | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._inner.read(size)
        except OSError as error:
            self._error = error
            raise

    def close(self) -> None:
        self._inner.close()
        super().close()

    def check(self) -> None:
        """Raise the error that the last read ended in, if it did."""
        if self._error is not None:
            raise self._error
