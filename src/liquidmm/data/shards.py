"""The rows of a finished folder of shards, by number.

Contract: a row costs the reading of its own bytes, wherever it stands; files are opened when they
are first needed, and only so many stay open. What is kept in memory grows with the number of shards
and not with that of rows. Rows keep the order of the shards; those of a kind are found by counting.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from liquidmm.data.manifest import Manifest, Shard, read_manifest
from liquidmm.data.shard_file import ROW_KINDS, Kind, Row, ShardFile
from liquidmm.data.shard_folder import digest_file
from liquidmm.errors import DataError

_OPEN = 1024
"""Files of a folder that stay mapped at most; opening one again takes about 0.2 ms."""


class Rows:
    """Some rows of a folder by number, without a list of them: a stretch of each of its shards."""

    def __init__(self, shards: "Shards", first: Sequence[int], counts: Sequence[int]) -> None:
        """Set up.

        Args:
            shards: The folder.
            first: Number of the first row of the stretch in its shard, for each shard.
            counts: Rows of each stretch.
        """
        self._shards = shards
        self._first = np.array(first, dtype=np.int64)
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._shards.folder}: row {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._shards.row(number, int(self._first[number]) + index - before)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


class Shards(Rows):
    """All rows of a folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Set up; no file is opened."""
        self.folder = folder
        self.manifest = manifest
        self._file = lru_cache(maxsize=_OPEN)(partial(_open, folder, manifest.shards))
        counts = [shard.tallies.records for shard in manifest.shards]
        super().__init__(self, [0] * len(counts), counts)

    def __reduce__(self) -> tuple[Any, ...]:
        # open files stay in their process
        return Shards, (self.folder, self.manifest)

    def of_kind(self, kind: Kind) -> Rows:
        """Return the rows of one kind, in order."""
        tallies = [shard.tallies.kinds for shard in self.manifest.shards]
        before = ROW_KINDS[: ROW_KINDS.index(kind)]
        first = [sum(kinds.get(other, 0) for other in before) for kinds in tallies]
        return Rows(self, first, [kinds.get(kind, 0) for kinds in tallies])

    def row(self, number: int, place: int) -> Row:
        """Return a row by the number of its shard and its place in it.

        Raises:
            DataError: The shard is missing or broken, or the row is damaged.
        """
        return self._file(number).row(place)


def read_shards(folder: Path) -> Shards:
    """Open a folder that `liquid encode` finished.

    Args:
        folder: Folder with `manifest.json` and its shard files.

    Returns:
        Its rows by number.

    Raises:
        DataError: No such folder, encoding was not finished, or a shard is missing or cut off.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(
            f"{folder}: encoding was not finished. Run the same liquid encode again to finish it."
        )
    sizes = {path.name: path.stat().st_size for path in folder.glob("shard-*.arrow")}
    for shard in manifest.shards:
        problem = _size_problem(shard, sizes.get(shard.name))
        if problem:
            raise DataError(f"{folder / shard.name}: {problem}. {_again(shard)}")
    return Shards(folder, manifest)


def validate(folder: Path) -> Iterator[tuple[Shard, str]]:
    """Compare every shard of a finished folder with the checksum in the manifest.

    Args:
        folder: Folder with `manifest.json` and its shard files.

    Yields:
        Each shard with what is wrong with it and what to do, empty when nothing is.

    Raises:
        DataError: No such folder, or encoding was not finished.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(
            f"{folder}: encoding was not finished, there are no checksums yet. Run the same "
            "liquid encode again to finish it."
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(partial(_problem, folder), manifest.shards)
        for shard, problem in zip(manifest.shards, problems, strict=True):
            yield shard, f"{folder / shard.name}: {problem}. {_again(shard)}" if problem else ""


def _open(folder: Path, shards: Sequence[Shard], number: int) -> ShardFile:
    shard = shards[number]
    file = ShardFile(folder / shard.name)
    if len(file) != shard.tallies.records:
        raise DataError(
            f"{folder / shard.name}: has {len(file)} rows, the manifest says "
            f"{shard.tallies.records}. {_again(shard)}"
        )
    return file


def _problem(folder: Path, shard: Shard) -> str:
    path = folder / shard.name
    problem = _size_problem(shard, path.stat().st_size if path.exists() else None)
    if not problem and (digest := digest_file(path)) != shard.sha256:
        return f"has SHA-256 {digest}, the manifest says {shard.sha256}"
    return problem


def _size_problem(shard: Shard, size: int | None) -> str:
    if size is None:
        return "is missing"
    return f"has {size} bytes, the manifest says {shard.bytes}" if size != shard.bytes else ""


def _again(shard: Shard) -> str:
    return f"It was made from {shard.part}: remove it and run the same liquid encode again."
