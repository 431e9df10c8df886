"""Finding, listing and opening files by path, pattern or URL.

A name without `://` is a local path and is kept as written; fsspec opens names with `://`. A file
that cannot be found or read raises `DataError` with its name; an unsupported protocol raises
`ConfigError`.
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

from liquidmm.data.readers.compressed import COMPRESSED, DamagedError, decompress
from liquidmm.errors import ConfigError, DataError, LiquidError, one_line

_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_PERMANENT = (DamagedError, FileNotFoundError, IsADirectoryError, PermissionError)
_MAX_RANGE = 1_000_000  # files in one pair of braces; more are a typo


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file or folder that exists."""

    name: str
    """Path or URL."""
    size: int = 0
    """Bytes."""
    version: str = ""
    """Value that changes with the content: the modification time, or the server's equivalent."""
    is_folder: bool = False


def is_url(name: str) -> bool:
    """Whether fsspec opens a name."""
    return "://" in name


def parent(name: str) -> Path | str:
    """Return the folder of a file, as a URL if the file is one."""
    return name.rpartition("/")[0] if is_url(name) else Path(name).parent


def find_files(pattern: str) -> list[File]:
    """Return the files that a path or pattern names, in order.

    Braces such as `{a,b}` and `{00..99}` are expanded first, in the order written; matches of `*`,
    `**`, `?` and `[...]` are sorted by name. A folder is found by its path, or by a pattern that
    does not match any files.

    Raises:
        DataError: There is no such file.
        ConfigError: The protocol of the URL is unknown.
    """
    found: list[File] = []
    for name in _expand_braces(pattern):
        files = _find_remote(name) if is_url(name) else _find_local(name)
        if not files:
            what = "no file matches" if glob.has_magic(name) else "no such file or folder"
            raise DataError(f"{pattern}: {what} '{name}'. Correct the path.")
        found += [file for file in files if not file.is_folder] or files
    return found


def list_names(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder, each sorted.

    A link counts as its target, and a broken link as a file.
    """
    if is_url(folder):
        fs, path = _file_system(folder)
        found = [
            (info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory")
            for info in fs.ls(path, detail=True)
        ]
    else:
        with os.scandir(folder) as items:
            found = [(item.name, item.is_dir()) for item in items]
    return (
        sorted(name for name, is_folder in found if not is_folder),
        sorted(name for name, is_folder in found if is_folder),
    )


def list_files(folder: str) -> list[File]:
    """Return the files in a folder with their sizes and versions, sorted by name."""
    if is_url(folder):
        fs, path = _file_system(folder)
        files = [_remote_file(fs, info) for info in fs.ls(path, detail=True)]
    else:
        with os.scandir(folder) as items:
            files = [_local_file(item.path) for item in items]
    return sorted((file for file in files if not file.is_folder), key=lambda file: file.name)


def stem(name: str) -> str:
    """Return the name without its compression suffix."""
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def suffix(name: str) -> str:
    """Return the last suffix of a name in lowercase, such as `.tar`."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - pathlib takes ten times as long


def is_compressed(name: str) -> bool:
    """Whether the file is compressed as a whole."""
    return stem(name) != name


def open_raw(name: str) -> BinaryIO:
    """Open a file without decompressing it."""
    if not is_url(name):
        return Path(name).open("rb")
    fs, path = _file_system(name)
    return cast(BinaryIO, fs.open(path, "rb"))


def open_file(name: str) -> BinaryIO:
    """Open a file and decompress it if its suffix names a compression; see `open_raw`."""
    return decompress(name, lambda: open_raw(name))


def permanent_reason(name: str, error: BaseException) -> str:
    """Return the reason why a file cannot be read, on one line.

    Raises:
        LiquidError: The file is remote and the cause may be temporary, so its records must not
            count as rejected.
    """
    if is_url(name) and isinstance(error, OSError) and not isinstance(error, _PERMANENT):
        raise LiquidError(
            f"{name}: cannot be read at the moment ({one_line(error)}). Run the command "
            "again; it resumes from here."
        ) from error
    return one_line(error)


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None or (not is_url(pattern) and Path(pattern).exists()):
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for choice in _choices(match[1], pattern):
        yield from _expand_braces(f"{before}{choice}{after}")


def _choices(inside: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.match(inside)
    if numbers is None:
        if "," not in inside:
            raise DataError(
                f"{pattern}: expected braces such as {{00..99}} or {{a,b}}, got '{{{inside}}}'."
            )
        yield from inside.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + _MAX_RANGE:
        raise DataError(
            f"{pattern}: expected 1 to {_MAX_RANGE} files, but '{{{inside}}}' names "
            f"{last - first + 1}. Correct the range."
        )
    width = len(numbers[1]) if numbers[1].startswith("0") else 1
    for number in range(first, last + 1):
        yield f"{number:0{width}d}"


def _find_remote(name: str) -> list[File]:
    fs, path = _file_system(name)
    try:
        if glob.has_magic(path) and not fs.exists(path):
            found = fs.glob(path, detail=True)
        else:
            found = {path: fs.info(path)} if fs.exists(path) else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be listed ({one_line(error)}). Check the URL.") from error
    return [_remote_file(fs, info) for _, info in sorted(found.items())]


def _find_local(name: str) -> list[File]:
    if os.path.lexists(name) or not glob.has_magic(name):
        names = [name] if Path(name).exists() else []
    else:
        # Path.glob accepts no absolute patterns
        found = glob.glob(name, recursive=True)  # noqa: PTH207
        names = sorted(path for path in found if Path(path).exists())
    return [_local_file(path) for path in names]


def _remote_file(fs: Any, info: dict[str, Any]) -> File:
    return File(
        name=fs.unstrip_protocol(info["name"].rstrip("/")),
        size=info.get("size") or 0,
        version=str(sorted(info.items())),  # contains an ETag, blob_id or similar
        is_folder=info["type"] == "directory",
    )


def _local_file(name: str) -> File:
    path = Path(name)
    status = path.stat() if path.exists() else path.lstat()
    return File(
        name=name,
        size=status.st_size,
        version=str(status.st_mtime_ns),
        is_folder=stat.S_ISDIR(status.st_mode),
    )


@lru_cache(maxsize=64)
def _check_protocol(protocol: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ConfigError(f"{protocol}://: {one_line(error)}.") from error
    except ValueError as error:
        raise ConfigError(
            f"{protocol}://: unknown protocol. Use one that fsspec supports, such as s3://."
        ) from error


def _file_system(url: str) -> tuple[Any, str]:
    _check_protocol(url.partition("://")[0].rpartition("::")[2])
    fs, path = fsspec.url_to_fs(url)
    return fs, path
