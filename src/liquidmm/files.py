"""Files and folders that are written completely or not at all.

Every file this package writes goes through `atomic_file` or `atomic_folder`, so a crash, a full
disk or an exception leaves no partial file behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from liquidmm.errors import LiquidError


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        path: The folder; missing parents are created.
        overwrite: Replace an existing folder. Otherwise it must not exist or must be empty.

    Yields:
        A new empty folder next to ``path``. It becomes ``path`` at the end of the block, and is
        deleted if the block raises an exception.

    Raises:
        LiquidError: The folder exists, or cannot be written (disk full, read-only, no permission).
    """
    path = Path(path)
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not overwrite:
        raise LiquidError(f"{path}: already exists. Choose another path or remove it first.")
    with _temporary(path, _new_folder) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):  # safetensors makes files readable only by their owner
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
        if not occupied:
            temporary.replace(path)
            return
        old = _new_folder(path) / path.name
        path.replace(old)
        try:
            temporary.replace(path)
        except BaseException:
            old.replace(path)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write or replace a file completely or not at all.

    Args:
        path: The file; missing parents are created.

    Yields:
        A path next to ``path``, with its suffix. It becomes ``path`` at the end of the block, and
        is deleted if the block raises an exception.

    Raises:
        LiquidError: ``path`` is a folder, or cannot be written (disk full, read-only, no
            permission).
    """
    path = Path(path)
    if path.is_dir():
        raise LiquidError(f"{path}: is a folder. Use the path of a file.")
    with _temporary(path, _new_file) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write or replace a UTF-8 file like `atomic_file`; odd bytes of file names are escaped."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path], Path]) -> Iterator[Path]:
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = make(path)
        yield temporary
    except Exception as error:
        reason = _disk_error(error, path.parent)
        if reason is None:
            raise
        raise LiquidError(
            f"{path}: cannot be written ({reason}). Free disk space or choose another path; "
            "no partial files remain."
        ) from error
    finally:
        if temporary is not None and temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary is not None:
            temporary.unlink(missing_ok=True)


def _disk_error(error: Exception, folder: Path) -> str | None:
    """Return the reason if ``error`` occurred while writing below ``folder``, otherwise None."""
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename
        # tempfile reports absolute paths even for a relative folder
        if named is None or Path(os.fsdecode(named)).absolute().is_relative_to(folder.absolute()):
            return error.strerror or str(error)
    # safetensors reports a full disk with its own exception, without an errno
    if type(error).__name__ == "SafetensorError" and "os error" in str(error).lower():
        return str(error)
    return None


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _new_folder(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
