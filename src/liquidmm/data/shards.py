"""Reading shards: the samples of a folder by index.

A shard is an uncompressed Arrow IPC file with one record batch. It is mapped into memory, so
reading a sample touches only that sample's bytes. Files are opened when first needed. Memory grows
with the number of shards, not samples. Every sample has a CRC-32, which is checked when the sample
is read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from liquidmm.config import from_dict
from liquidmm.data.manifest import Manifest, RejectedSample, Shard, ShardStats, read_manifest
from liquidmm.data.records import Message
from liquidmm.data.samples import SAMPLE_KINDS, Codes, Sample, SampleKind
from liquidmm.errors import DataError

METADATA_KEY = b"liquidmm"
"""Key of the schema metadata that contains the `ShardInfo` as JSON."""

_NAME = pa.dictionary(pa.int32(), pa.string())
_STRING = pa.large_string()  # the texts of a shard can exceed 2 GiB in total
IMAGE = pa.struct(
    [("height", pa.uint16()), ("width", pa.uint16()), ("codes", pa.list_(pa.uint16()))]
)
SCHEMA = pa.schema(
    [
        ("kind", _NAME),
        ("key", _STRING),
        ("source", _NAME),
        ("license", _NAME),
        ("text", _STRING),
        ("captions", pa.list_(_STRING)),
        ("roles", pa.list_(_STRING)),
        ("contents", pa.list_(_STRING)),
        ("image_codes", pa.list_(IMAGE)),
        ("crc32", pa.uint32()),
    ]
)

_MAX_OPEN_FILES = 1024
"""Maximum number of mapped files per folder; reopening one takes about 0.2 ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """The metadata of a shard."""

    schema_version: int
    chunk: str
    """Name of the source chunk it was made from."""
    stats: ShardStats
    rejected: tuple[RejectedSample, ...]
    """The entries of the chunk that were rejected."""


def read_info(path: Path) -> ShardInfo:
    """Read the metadata of a shard, without its samples.

    Raises:
        DataError: The file is missing or not a shard.
    """
    try:
        with pa.memory_map(str(path)) as source:
            data = json.loads(ipc.open_file(source).schema.metadata[METADATA_KEY])
        return from_dict(ShardInfo, data, str(path))
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise _not_a_shard(path, error) from error


class ShardFile:
    """The samples of one shard by index."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            DataError: The file is missing or not a shard.
        """
        self._path = path
        try:
            with pa.memory_map(str(path)) as source:
                batch = ipc.open_file(source).get_batch(0)
            if not batch.schema.equals(SCHEMA):
                raise ValueError("other columns")
            batch.validate()  # checks the length of every buffer
            self._count: int = batch.num_rows
            self._columns = {
                "kind": _names(batch["kind"]),
                "key": _strings(batch["key"]),
                "source": _names(batch["source"]),
                "license": _names(batch["license"]),
                "text": _strings(batch["text"]),
                "captions": _lists(batch["captions"], _strings),
                "image_codes": _lists(batch["image_codes"], _codes),
            }
            self._roles = _lists(batch["roles"], _strings)
            self._contents = _lists(batch["contents"], _strings)
            self._crc32 = batch["crc32"].to_numpy()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _not_a_shard(path, error) from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        try:
            turns = zip(self._roles(index), self._contents(index), strict=True)
            sample = Sample(
                messages=tuple(Message(role=role, content=content) for role, content in turns),
                **{name: read(index) for name, read in self._columns.items()},
            )
            if sample.checksum() != self._crc32[index]:
                raise ValueError("wrong checksum")
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{self._path}: sample {index} is damaged ({error}). Run liquid verify on the "
                "folder to find what to encode again."
            ) from error
        return sample


class SampleView:
    """Some samples of a folder by index: a contiguous range of each of its shards."""

    def __init__(self, shards: "Shards", first: Sequence[int], counts: Sequence[int]) -> None:
        """Create a view; `first` and `counts` are the first sample and the size of each range."""
        self._shards = shards
        self._first = np.array(first, dtype=np.int64)
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._shards.folder}: sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._shards.file(number)[int(self._first[number]) + index - before]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Shards(SampleView):
    """All samples of a folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.file = lru_cache(maxsize=_MAX_OPEN_FILES)(partial(_open, folder, manifest.shards))
        """Opens a shard by number, or raises a `DataError`."""
        counts = [shard.stats.records for shard in manifest.shards]
        super().__init__(self, [0] * len(counts), counts)

    def __reduce__(self) -> tuple[Any, ...]:
        # open files are not pickled
        return Shards, (self.folder, self.manifest)

    def of_kind(self, kind: SampleKind) -> SampleView:
        """Return the samples of one kind, in order."""
        counts = [shard.stats.kinds for shard in self.manifest.shards]
        before = SAMPLE_KINDS[: SAMPLE_KINDS.index(kind)]
        first = [sum(kinds.get(other, 0) for other in before) for kinds in counts]
        return SampleView(self, first, [kinds.get(kind, 0) for kinds in counts])


def read_shards(folder: Path) -> Shards:
    """Open a complete folder of shards.

    Raises:
        DataError: The folder is missing or incomplete, or a shard is missing or truncated.
    """
    manifest = _complete_manifest(folder)
    sizes = {path.name: path.stat().st_size for path in folder.glob("shard-*.arrow")}
    for shard in manifest.shards:
        if problem := _size_problem(shard, sizes.get(shard.name)):
            raise DataError(f"{folder / shard.name}: {problem}. {_remedy(shard)}")
    return Shards(folder, manifest)


def verify(folder: Path) -> Iterator[tuple[Shard, str]]:
    """Compare every shard of a complete folder with its checksum in the manifest.

    Yields:
        Each shard with an error message that includes the remedy, or "" if it is intact.

    Raises:
        DataError: The folder is missing or incomplete.
    """
    manifest = _complete_manifest(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(partial(_problem, folder), manifest.shards)
        for shard, problem in zip(manifest.shards, problems, strict=True):
            yield shard, f"{folder / shard.name}: {problem}. {_remedy(shard)}" if problem else ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete_manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(
            f"{folder}: encoding is not finished. Run the same liquid encode again to finish it."
        )
    return manifest


def _open(folder: Path, shards: Sequence[Shard], number: int) -> ShardFile:
    shard = shards[number]
    file = ShardFile(folder / shard.name)
    if len(file) != shard.stats.records:
        raise DataError(
            f"{folder / shard.name}: has {len(file)} samples, expected {shard.stats.records} "
            f"(manifest). {_remedy(shard)}"
        )
    return file


def _problem(folder: Path, shard: Shard) -> str:
    path = folder / shard.name
    problem = _size_problem(shard, path.stat().st_size if path.exists() else None)
    if not problem and (digest := file_digest(path)) != shard.sha256:
        return f"has SHA-256 {digest}, expected {shard.sha256} (manifest)"
    return problem


def _size_problem(shard: Shard, size: int | None) -> str:
    if size is None:
        return "is missing"
    return f"has {size} bytes, expected {shard.bytes} (manifest)" if size != shard.bytes else ""


def _remedy(shard: Shard) -> str:
    return f"It was made from {shard.chunk}: remove it and run the same liquid encode again."


def _not_a_shard(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: missing or not a shard ({error}). Remove it and run liquid encode again."
    )


# Python checks the bounds of slices of the columns' buffers, so a damaged offset raises an error
# instead of reading other memory. This is also the fastest way.


def _names(column: pa.DictionaryArray) -> Callable[[int], Any]:
    indices, name = column.indices.to_numpy(), lru_cache(_strings(column.dictionary, np.int32))
    return lambda index: name(indices[index])


def _strings(column: pa.Array, offset: type = np.int64) -> Callable[[int], str]:
    _, offsets, data = column.buffers()
    ends: np.ndarray[Any, Any] = np.frombuffer(offsets or b"", dtype=offset)
    view = memoryview(data or b"")
    return lambda index: str(view[ends[index] : ends[index + 1]], "utf-8")


def _lists(
    column: pa.ListArray, values: Callable[[Any], Callable[[int], Any]]
) -> Callable[[int], tuple[Any, ...]]:
    ends, value = column.offsets.to_numpy(), values(column.values)
    return lambda index: tuple(value(place) for place in range(ends[index], ends[index + 1]))


def _codes(column: pa.StructArray) -> Callable[[int], Codes]:
    heights, widths = (column.field(side).to_numpy() for side in ("height", "width"))
    ends, flat = column.field("codes").offsets.to_numpy(), column.field("codes").values.to_numpy()
    return lambda place: flat[ends[place] : ends[place + 1]].reshape(heights[place], widths[place])
