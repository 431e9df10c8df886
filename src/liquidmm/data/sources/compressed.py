"""Compressed files as what they hold.

Contract: `decompressed` gives a buffered stream of the content. When the file is cut off or
damaged, everything that can be unpacked before that place is delivered, then `OSError` is raised.
"""

import io
import lzma
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import pyarrow as pa

COMPRESSED: Mapping[str, str] = MappingProxyType(
    {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}
)
"""Suffix of a file -> how it is compressed."""

_BUFFER = 2**16


def decompressed(name: str, open_raw: Callable[[], BinaryIO]) -> BinaryIO:
    """Open a file, decompressed where its name ends in one of `COMPRESSED`.

    Args:
        name: The name that decides.
        open_raw: Opens the file as it stands, from its start.

    Raises:
        OSError: The file can't be opened.
    """
    codec = next((codec for end, codec in COMPRESSED.items() if name.endswith(end)), None)
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
        self._broken: OSError | None = None
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
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
            self._broken = OSError(f"compressed data is cut off or damaged: {error}")
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
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException):
            pass
        return bytes(rest)

    def _opened(self) -> tuple[BinaryIO, Any]:
        raw = self._open_raw()
        if self._codec == "xz":
            return raw, lzma.LZMAFile(raw)
        return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self._codec)
