"""Files and folders that appear complete or not at all.

Every file this package writes goes through `atomic_file` or `atomic_folder`: a crash, a full disk
or an exception leaves nothing half-written behind.
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
    """Write a folder so that it appears whole or not at all.

    Args:
        path: Where the folder shall stand; missing parents are made.
        overwrite: Replace what stands there; otherwise only a missing or empty folder is accepted.

    Yields:
        A new empty folder beside ``path``; when the block ends well it becomes ``path``, and when
        it raises it is removed.

    Raises:
        LiquidError: Something is there already, or the disk refused (full, read-only, not
            permitted).
    """
    path = Path(path)
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not overwrite:
        raise LiquidError(f"{path}: exists already. Choose another place or remove it first.")
    with _written_beside(
        path, lambda: Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    ) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):  # safetensors writes files that only their owner reads
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
        if not occupied:
            temporary.replace(path)
            return
        old = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent)) / path.name
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
    """Write a file so that it appears whole or not at all; an existing file is replaced.

    Args:
        path: Where the file shall stand; missing parents are made.

    Yields:
        The path to write to, beside ``path`` and with its suffix; when the block ends well it
        becomes ``path``, and when it raises it is removed.

    Raises:
        LiquidError: A folder is there already, or the disk refused (full, read-only, not
            permitted).
    """
    path = Path(path)
    if path.is_dir():
        raise LiquidError(f"{path}: is a folder. Name a file.")
    with _written_beside(path, lambda: _new_file(path)) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


@contextlib.contextmanager
def _written_beside(path: Path, make: Callable[[], Path]) -> Iterator[Path]:
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = make()
        yield temporary
    except Exception as error:
        reason = _refusal(error, path.parent)
        if reason is None:
            raise
        raise LiquidError(
            f"{path}: can't be written ({reason}). Make room or choose another place; "
            "nothing was left behind."
        ) from error
    finally:
        if temporary is not None and temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary is not None:
            temporary.unlink(missing_ok=True)


def _refusal(error: Exception, folder: Path) -> str | None:
    """Return the disk's reason when ``error`` is about writing below ``folder``, else None."""
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename
        # tempfile names its files absolutely, whatever folder it was given.
        if named is None or Path(os.fsdecode(named)).absolute().is_relative_to(folder.absolute()):
            return error.strerror or str(error)
    # safetensors reports a full disk with an exception of its own, without an errno.
    if type(error).__name__ == "SafetensorError" and "os error" in str(error).lower():
        return str(error)
    return None


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _prefix(path: Path) -> str:
    return f".{path.name}."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
