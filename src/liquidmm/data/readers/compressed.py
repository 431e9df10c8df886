"""Decompression of files.

All data before a truncation or damage is returned, then `DamagedError` is raised. Disk errors are
raised unchanged.
"""

import io
import lzma
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

import pyarrow as pa


class DamagedError(OSError):
    """Compressed data is truncated or damaged."""


COMPRESSED: Mapping[str, str] = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lz4": "lz4",
}
"""Suffix of a file -> its codec."""

_CODECS = {**COMPRESSED, ".tgz": "gzip"}
_BUFFER = 2**16
_CODEC_ERRORS = (OSError, EOFError, lzma.LZMAError, pa.ArrowException)


def decompress(name: str, open_stored: Callable[[], BinaryIO]) -> BinaryIO:
    """Open a file as a buffered stream of its content; the suffix of its name selects the codec."""
    codec = next((codec for end, codec in _CODECS.items() if name.endswith(end)), None)
    if codec is None:
        return open_stored()
    return cast(BinaryIO, io.BufferedReader(_Decompressed(codec, open_stored), _BUFFER))


class _Decompressed(io.RawIOBase):
    """Decompressed content as a raw stream without seeking."""

    def __init__(self, codec: str, open_stored: Callable[[], BinaryIO]) -> None:
        super().__init__()
        self._codec = codec
        self._open_stored = open_stored
        self._position = 0
        self._damage: DamagedError | None = None
        self._stored, self._stream = self._open()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._damage is not None:
            raise self._damage
        content = self._read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._stored.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            return cast(bytes, self._stream.read(size))
        except _CODEC_ERRORS as error:
            self._stored.raise_error()
            self._damage = DamagedError(f"compressed data is truncated or damaged: {error}")
            self._damage.__cause__ = error
        rest = self._read_up_to_damage(size)
        if not rest:
            raise self._damage
        return rest

    def _read_up_to_damage(self, size: int) -> bytes:
        """Return the bytes between the last complete read and the damage.

        A read that reaches the damage loses what it has already decompressed, so read byte by byte.
        """
        self._stream.close()
        self._stored.close()
        self._stored, self._stream = self._open()
        rest = bytearray()
        try:
            skipped = 0
            while skipped < self._position:
                skipped += len(self._stream.read(min(_BUFFER, self._position - skipped)))
            while len(rest) < size:
                rest += self._stream.read(1)
        except _CODEC_ERRORS:
            self._stored.raise_error()
        return bytes(rest)

    def _open(self) -> tuple["_Stored", Any]:
        stored = _Stored(self._open_stored())
        if self._codec == "xz":
            return stored, lzma.LZMAFile(cast(BinaryIO, stored))
        return stored, pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), self._codec)


class _Stored(io.RawIOBase):
    """The stored file; separates disk errors from those of the codec."""

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

    def raise_error(self) -> None:
        """Raise the error of the last read, if any."""
        if self._error is not None:
            raise self._error
