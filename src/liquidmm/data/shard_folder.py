"""A folder of shards while it is written, by one process or by many on several machines.

Contract: shard n is made from part n of the source and from nothing else, so parts can be written
in any order and again. The shards alone say what is done: nobody keeps a list, and `manifest.json`
and `quarantine.jsonl` are derived from them. All shards of a folder have one `Provenance`. Everything
here can be called twice, or by two processes at once, with the same result.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from liquidmm.config import to_dict
from liquidmm.data.manifest import (
    MANIFEST,
    REJECTED,
    SCHEMA_VERSION,
    Manifest,
    Provenance,
    Shard,
    ShardStats,
    add_up,
    check_origin,
    check_parts,
    read_manifest,
)
from liquidmm.data.shard_file import COLUMNS, read_info, shard_name
from liquidmm.errors import DataError
from liquidmm.files import atomic_file


def begin(folder: Path, origin: Provenance, parts: int) -> list[int]:
    """Make a folder, or go on with one that was begun with the same origin.

    Args:
        folder: Folder for the shards.
        origin: What the rows are made from.
        parts: Number of parts of the source, which is the number of shards.

    Returns:
        Numbers of the shards that are still missing, ascending.

    Raises:
        DataError: The folder holds shards of another origin or number of parts (the first
            difference is named), or other files.
        LiquidError: The disk refused.
    """
    exists = (folder / MANIFEST).exists()
    complete = exists and _check(folder, origin, parts).complete
    if (
        not exists
        and folder.is_dir()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise DataError(
            f"{folder}: holds other files and no {MANIFEST}. Choose an empty or a new folder."
        )
    there = _names(folder)
    missing = [number for number in range(parts) if shard_name(number) not in there]
    if not exists or (complete and missing):
        _write_manifest(folder, origin, parts, shards=(), complete=False)
    return missing


def tally(folder: Path) -> ShardStats:
    """Add up what the shards hold that are on disk; reads a few KB of each.

    Raises:
        DataError: A file is not a shard.
    """
    return add_up([read_info(folder / name).tallies for name in sorted(_names(folder))])


def write_quarantine(folder: Path) -> Path:
    """Write the refused entries of the shards that are on disk, one JSON object a line.

    Returns:
        The file.

    Raises:
        DataError: A file is not a shard.
        LiquidError: The disk refused.
    """
    path = folder / REJECTED
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name in sorted(_names(folder)):
            for refusal in read_info(folder / name).refusals:
                file.write(json.dumps(to_dict(refusal), ensure_ascii=False) + "\n")
    return path


def finish(folder: Path, origin: Provenance, parts: int) -> Manifest:
    """Write manifest and quarantine once all shards are there; reads every shard for its checksum.

    Also removes what processes that were killed left half-written, so no other may be writing.

    Args:
        folder: The folder that was begun.
        origin: What the rows are made from.
        parts: Number of parts of the source.

    Returns:
        The manifest of the finished folder.

    Raises:
        DataError: Shards are missing, one is broken, or the folder was begun otherwise.
        LiquidError: The disk refused.
    """
    before = _check(folder, origin, parts)
    there = _names(folder)
    names = [shard_name(number) for number in range(parts)]
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {parts} shards are missing, the first is {missing[0]}. "
            "Run the same liquid encode again."
        )
    if before.complete:
        return before
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(_describe, (folder / name for name in names)))
    write_quarantine(folder)
    manifest = _write_manifest(folder, origin, parts, shards=shards, complete=True)
    for left in folder.glob(".shard-*.arrow*"):
        left.unlink(missing_ok=True)
    return manifest


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, origin: Provenance, parts: int) -> Manifest:
    manifest = read_manifest(folder)
    check_origin(manifest.origin, origin, folder)
    check_parts(manifest.parts, parts, folder)
    return manifest


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("shard-*.arrow")}


def _describe(path: Path) -> Shard:
    info = read_info(path)
    return Shard(
        name=path.name,
        part=info.part,
        bytes=path.stat().st_size,
        sha256=digest_file(path),
        tallies=info.tallies,
    )


def _write_manifest(
    folder: Path, origin: Provenance, parts: int, *, shards: Sequence[Shard], complete: bool
) -> Manifest:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        origin=origin,
        complete=complete,
        parts=parts,
        columns=COLUMNS,
        totals=add_up([shard.tallies for shard in shards]),
        shards=tuple(shards),
    )
    with atomic_file(folder / MANIFEST) as temporary:
        text = json.dumps(to_dict(manifest), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return manifest
