"""Where records come from: a JSONL file or a folder of pictures with captions beside them.

Contract: `entries` yields what a source holds in a fixed order, good records and refused ones
alike, so that a caller can count and report both; `open_source` and the `read_` functions are
strict and raise at the first bad record. Nothing is skipped silently.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from liquidmm.data.records import ImageTextRecord, Record, parse_record
from liquidmm.errors import DataError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One place of a source: a record, or the reason why there is none."""

    where: str
    """`file:line`, or the path of a picture."""
    record: Record | None
    """The record; None when it was refused."""
    problem: str = ""
    """The message when it was refused."""


def entries(path: Path) -> Iterator[Entry]:
    """Yield every entry of a JSONL file or a picture folder, refused ones included.

    Args:
        path: A `.jsonl` file, or a folder of pictures with a `.txt` of the same name beside each.

    Yields:
        The entries in file order, or in order of the relative path.

    Raises:
        DataError: The path does not exist, or is neither of the two.
    """
    if path.is_dir():
        return _folder_entries(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file or folder. Give a .jsonl file or a folder of pictures."
        )
    if path.suffix not in (".jsonl", ".ndjson", ".json"):
        raise DataError(
            f"{path}: unknown kind of source. Give a .jsonl file or a folder of pictures."
        )
    return _jsonl_entries(path)


def open_source(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file or a picture folder, strictly.

    Raises:
        DataError: The source does not exist, or the first bad record, with file and line.
    """
    for entry in entries(path):
        if entry.record is None:
            raise DataError(entry.problem)
        yield entry.record


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file; picture paths are relative to the file's folder.

    Raises:
        DataError: There is no such file, or the first bad line, with file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give a .jsonl file of records.")
    return open_source(path)


def read_folder(path: Path) -> Iterator[Record]:
    """Yield one record per picture below a folder.

    The `.txt` of the same name beside a picture holds one caption per line.

    Raises:
        DataError: No such folder, no pictures in it, or the first picture without a caption.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give a folder of pictures with .txt captions.")
    return open_source(path)


def digest(path: Path) -> str:
    """Return a hash that changes when the source does: 16 hex digits.

    A file is hashed by its content, without that of the pictures it names; a folder by names, sizes
    and times of its pictures and captions.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    total = hashlib.sha256()
    for file_path in sorted(path.rglob("*")):
        if file_path.suffix.lower() in PICTURE_SUFFIXES | {".txt"}:
            status = file_path.stat()
            line = f"{file_path.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            total.update(line.encode())
    return total.hexdigest()[:16]


def _jsonl_entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _line_entry(line, f"{path}:{number}", path.parent)


def _line_entry(line: bytes, where: str, root: Path) -> Entry:
    try:
        return Entry(where=where, record=parse_record(json.loads(line), where, root))
    except DataError as error:
        return Entry(where=where, record=None, problem=str(error))
    except ValueError as error:
        # json and utf-8 errors; a line cut in half by a full disk is the usual cause
        return Entry(
            where=where,
            record=None,
            problem=f"{where}: not valid JSON ({error}). Correct the line.",
        )


def _folder_entries(path: Path) -> Iterator[Entry]:
    pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise DataError(f"{path}: no pictures found. Known: {', '.join(sorted(PICTURE_SUFFIXES))}.")
    for picture in pictures:
        yield _picture_entry(picture, path)


def _picture_entry(picture: Path, root: Path) -> Entry:
    caption = picture.with_suffix(".txt")
    where = str(picture)
    try:
        lines = caption.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        problem = (
            f"{where}: no readable {caption.name} ({error}). Write one caption per line there."
        )
        return Entry(where=where, record=None, problem=problem)
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        return Entry(
            where=where,
            record=None,
            problem=f"{where}: {caption.name} is empty. Write a caption there.",
        )
    key = picture.relative_to(root).with_suffix("").as_posix()
    return Entry(where=where, record=ImageTextRecord(key=key, image=picture, captions=captions))
