"""Files by path, pattern or URL: which there are, how large, and their bytes.

Contract: a name without `://` is a path of this machine and stays as it was written; one with it is
a URL, and goes to fsspec. What can't be found or read is a `DataError` that names it; a kind of URL
that is unknown or needs another package is a `ConfigError`. Compressed files are named by their
suffix and read as what they hold.
"""

import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from liquidmm.data.readers.compressed import COMPRESSED, DamagedError, decompressed
from liquidmm.errors import ConfigError, DataError, LiquidError

_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_FOR_GOOD = (DamagedError, FileNotFoundError, IsADirectoryError, PermissionError)
_MOST = 1_000_000  # files that braces may name; more is a slip of the pen


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file or folder that exists."""

    name: str
    """Path or URL."""
    size: int = 0
    """Bytes."""
    stamp: str = ""
    """What changes when the file does: its time, or what the server says instead."""
    folder: bool = False
    """Whether it is a folder."""


def is_url(name: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in name


def parent(name: str) -> Path | str:
    """Return the folder of a file: a path, or a URL where the file has one."""
    return name.rpartition("/")[0] if is_url(name) else Path(name).parent


def matching(pattern: str) -> list[File]:
    """Return the files that a path or a pattern names, in order.

    Braces come first, as `{a,b}` or `{00..99}`, each in the order that is written; what `*`, `**`,
    `?` and `[...]` find is sorted by name. Folders are found by their path, and by a pattern that
    finds no file.

    Raises:
        DataError: There is no such file.
        ConfigError: The URL is of an unknown kind.
    """
    found: list[File] = []
    for name in _expanded(pattern):
        files = _remote(name) if is_url(name) else _local(name)
        if not files:
            what = f"nothing matches '{name}'" if glob.has_magic(name) else f"there is no '{name}'"
            raise DataError(f"{pattern}: {what}. Correct the path.")
        found += [file for file in files if not file.folder] or files
    return found


def listing(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder, each sorted.

    A link counts as what it points to; one that points nowhere is a file.

    Raises:
        OSError: The folder can't be read.
    """
    if is_url(folder):
        fs, path = _system(folder)
        found = [
            (info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory")
            for info in fs.ls(path, detail=True)
        ]
    else:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    return (
        sorted(name for name, is_folder in found if not is_folder),
        sorted(name for name, is_folder in found if is_folder),
    )


def details(folder: str) -> list[File]:
    """Return the files in a folder, sorted by name, with their sizes and stamps.

    Raises:
        OSError: The folder can't be read.
    """
    if is_url(folder):
        fs, path = _system(folder)
        files = [_described(fs, info) for info in fs.ls(path, detail=True)]
    else:
        with os.scandir(folder) as entries:
            files = [_described_local(entry.path) for entry in entries]
    return sorted((file for file in files if not file.folder), key=lambda file: file.name)


def stem(name: str) -> str:
    """Return the name without the suffix of its compression."""
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def suffix(name: str) -> str:
    """Return the last suffix of a name in lower case, such as `.tar`."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - pathlib is ten times as slow


def is_compressed(name: str) -> bool:
    """Whether the file is compressed as a whole."""
    return stem(name) != name


def open_file(name: str) -> BinaryIO:
    """Open a file as it stands.

    Raises:
        OSError: It can't be opened.
        ConfigError: The URL is of an unknown kind.
    """
    if not is_url(name):
        return Path(name).open("rb")
    fs, path = _system(name)
    return cast(BinaryIO, fs.open(path, "rb"))


def open_content(name: str) -> BinaryIO:
    """Open a file, decompressed where its name says that it is compressed; see `open_file`."""
    return decompressed(name, lambda: open_file(name))


def blame(name: str, error: BaseException) -> str:
    """Say in one line why a file can't be read, if the file is to blame.

    Raises:
        LiquidError: It lies behind a URL, and what went wrong may be the way to it. Entries that
            could be read a minute later must not count as bad ones.
    """
    if is_url(name) and isinstance(error, OSError) and not isinstance(error, _FOR_GOOD):
        raise LiquidError(
            f"{name}: can't be read now ({reason(error)}). Run it again; it goes on from here."
        ) from error
    return reason(error)


def reason(error: BaseException) -> str:
    """Say in one line why a file can't be read."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _expanded(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None or (not is_url(pattern) and Path(pattern).exists()):
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for choice in _choices(match[1], pattern):
        yield from _expanded(f"{before}{choice}{after}")


def _choices(inside: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.match(inside)
    if numbers is None:
        if "," not in inside:
            raise DataError(f"{pattern}: '{{{inside}}}' is no range. Write {{00..99}} or {{a,b}}.")
        yield from inside.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MOST:
        raise DataError(f"{pattern}: '{{{inside}}}' names {last - first + 1} files. Correct it.")
    width = len(numbers[1]) if numbers[1].startswith("0") else 1
    for number in range(first, last + 1):
        yield f"{number:0{width}d}"


def _remote(name: str) -> list[File]:
    fs, path = _system(name)
    try:
        if glob.has_magic(path) and not fs.exists(path):
            found = fs.glob(path, detail=True)
        else:
            found = {path: fs.info(path)} if fs.exists(path) else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: can't be listed ({reason(error)}). Check the URL.") from error
    return [_described(fs, info) for _, info in sorted(found.items())]


def _local(name: str) -> list[File]:
    if os.path.lexists(name) or not glob.has_magic(name):
        names = [name] if Path(name).exists() else []
    else:
        # Path.glob takes no absolute patterns
        found = glob.glob(name, recursive=True)  # noqa: PTH207
        names = sorted(path for path in found if Path(path).exists())
    return [_described_local(path) for path in names]


def _described(fs: Any, info: dict[str, Any]) -> File:
    return File(
        name=fs.unstrip_protocol(info["name"].rstrip("/")),
        size=info.get("size") or 0,
        stamp=str(sorted(info.items())),  # names the version, such as ETag or blob_id
        folder=info["type"] == "directory",
    )


def _described_local(name: str) -> File:
    path = Path(name)
    status = path.stat() if path.exists() else path.lstat()
    return File(
        name=name,
        size=status.st_size,
        stamp=str(status.st_mtime_ns),
        folder=stat.S_ISDIR(status.st_mode),
    )


@lru_cache(maxsize=64)
def _protocol(protocol: str) -> None:
    """Check that fsspec can open such a URL, and say what it takes if it can't."""
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ConfigError(f"{protocol}://: {reason(error)}.") from error
    except ValueError as error:
        raise ConfigError(
            f"{protocol}://: unknown kind of URL. Known are those of fsspec, such as s3://."
        ) from error


def _system(url: str) -> tuple[Any, str]:
    _protocol(url.partition("://")[0].rpartition("::")[2])
    fs, path = fsspec.url_to_fs(url)
    return fs, path
