"""Where records come from: JSONL, a JSON array, Parquet, or a folder of pictures with captions.

Contract: `entries` yields what a source holds in a fixed order, good records and refused ones
alike, so that a caller can count and report both; `open_source` and the `read_` functions are
strict and raise at the first bad record. Nothing is skipped silently. A file of any size is read
in constant memory.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from liquidmm.data.conversations import parse_entry
from liquidmm.data.json_array import array_items
from liquidmm.data.records import ImageTextRecord, Record
from liquidmm.errors import ConfigError, DataError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})

_KINDS = "Give a .jsonl, .json or .parquet file, or a folder of pictures."
_BATCH = 256  # rows of a Parquet file in memory at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One place of a source: a record, or the reason why there is none."""

    where: str
    """`file:line`, `file[index]` in a JSON array or a Parquet file, or the path of a picture."""
    record: Record | None
    """The record; None when it was refused."""
    problem: str = ""
    """The message when it was refused."""
    line: int = 0
    """The line from 1, or the index from 0, that `where` names; 0 in a folder."""


def entries(path: Path, image_root: Path | None = None) -> Iterator[Entry]:
    """Yield every entry of a file or a picture folder, refused ones included.

    Args:
        path: A `.jsonl` file, a `.json` file of lines or one array, a `.parquet` file, or a folder
            of pictures with a `.txt` of the same name beside each.
        image_root: Folder that relative picture paths in a file start from; None: the file's own.

    Yields:
        The entries in file order, or in order of the relative path.

    Raises:
        DataError: The path does not exist or is none of these, or an array or a Parquet file can't
            be read on; the entries before that place have been yielded.
        ConfigError: `image_root` is no folder, or is given for a folder of pictures.
    """
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"image_root: no such folder '{image_root}'. Correct the path.")
    if path.is_dir():
        if image_root is not None:
            raise ConfigError(f"image_root: {path} is a folder of pictures itself. Leave it out.")
        return _folder_entries(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder. {_KINDS}")
    root = path.parent if image_root is None else image_root
    if path.suffix == ".parquet":
        return _indexed(_parquet_rows(path), path, root)
    if path.suffix == ".json" and _holds_array(path):
        return _indexed(array_items(path), path, root)
    if path.suffix in (".jsonl", ".ndjson", ".json"):
        return _jsonl_entries(path, root)
    raise DataError(f"{path}: unknown kind of source. {_KINDS}")


def open_source(path: Path) -> Iterator[Record]:
    """Yield the records of a file or a picture folder, strictly.

    Raises:
        DataError: The source does not exist, or the first bad record, with its place.
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


def _jsonl_entries(path: Path, root: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _line_entry(line, f"{path}:{number}", number, root)


def _line_entry(line: bytes, where: str, number: int, root: Path) -> Entry:
    try:
        obj = json.loads(line)
    except (ValueError, RecursionError) as error:
        # json and utf-8 errors; a line cut in half by a full disk is the usual cause
        problem = f"{where}: not valid JSON ({error}). Correct the line."
        return Entry(where=where, record=None, problem=problem, line=number)
    return _entry(obj, where, number, root)


def _indexed(items: Iterator[Any], path: Path, root: Path) -> Iterator[Entry]:
    for index, item in enumerate(items):
        yield _entry(item, f"{path}[{index}]", index, root)


def _entry(obj: Any, where: str, line: int, root: Path) -> Entry:
    try:
        return Entry(where=where, record=parse_entry(obj, where, root), line=line)
    except DataError as error:
        return Entry(where=where, record=None, problem=str(error), line=line)


def _holds_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows as mappings; every row has every column, so an empty cell is a missing key."""
    rows = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None}
                    rows += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}[{rows}]: not readable as Parquet ({reason}). From here on the file can't be "
            "read; download it again."
        ) from error


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
