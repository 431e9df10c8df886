"""Files of the built-in dataset (npm tarballs, JSON Lines, summaries) and stable hashes."""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from liquidmm.errors import DataError

REBUILD = "Build the data again with `liquid icons build`."
"""Remedy for damaged files of the dataset."""


def find_tarball(folder: Path, name: str) -> Path:
    """Find the only tarball of an npm package, such as `iconify-json-2.2.535.tgz`.

    Args:
        folder: Folder where `npm pack` wrote it.
        name: File name without version: `iconify-json`.

    Raises:
        DataError: There is no tarball, or more than one.
    """
    found = sorted(folder.glob(f"{name}-*.tgz"))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: expected one {name}-*.tgz, got {listed}. Download the packages with "
            "`make icons`, and remove duplicates."
        )
    return found[0]


def read_package(tarball: Path, members: Collection[str]) -> dict[str, bytes]:
    """Read files from an npm tarball in one pass.

    Args:
        tarball: A `.tgz` file written by `npm pack`.
        members: Paths inside the package: `json/noto.json`.

    Returns:
        Path -> content.

    Raises:
        DataError: The tarball is missing or damaged, or lacks a file.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(tarball, "r|*") as archive:
            for entry in archive:
                name = entry.name.removeprefix("package/")
                if name in members and (handle := archive.extractfile(entry)) is not None:
                    found[name] = handle.read()
                if len(found) == len(members):
                    break
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{tarball}: cannot be read ({error}). Download it again with `make icons`."
        ) from error
    if missing := sorted(set(members) - set(found)):
        raise DataError(
            f"{tarball}: file package/{missing[0]} is missing. Check that this is the tarball "
            "of the right package."
        )
    return found


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a JSON Lines file of the dataset; empty lines are skipped.

    Yields:
        `path:line` for error messages, and the object.

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path}: cannot be read ({reason}). Create it with `liquid icons build`, or pass the "
            "right folder."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: invalid JSON ({error}). {REBUILD}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object, got {row!r}. {REBUILD}")
            yield f"{path}:{number}", row


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_share(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int(text_hash(text)[:13], 16) / 16**13
