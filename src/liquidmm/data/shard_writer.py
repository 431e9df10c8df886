"""Writing a folder of shards, from one process or many processes on several machines.

Shard n is a pure function of chunk n of the source, so chunks can be written repeatedly and in any
order. A shard is never visible half-written and never changes. The shard files are the only record
of progress; `manifest.json` and `rejected.jsonl` are derived from them. Calling a function twice,
or in two processes at once, gives the same result.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from liquidmm.config import to_dict
from liquidmm.data.manifest import (
    MANIFEST,
    REJECTED,
    SCHEMA_VERSION,
    Manifest,
    Provenance,
    RejectedSample,
    Shard,
    ShardStats,
    add_stats,
    read_manifest,
)
from liquidmm.data.samples import SAMPLE_KINDS, Codes, Sample, shard_stats
from liquidmm.data.shards import IMAGE, METADATA_KEY, SCHEMA, ShardInfo, file_digest, read_info
from liquidmm.errors import DataError
from liquidmm.files import atomic_file

_MAX_CODES = 2**31 - 1


def shard_name(number: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"shard-{number:05d}.arrow"


def begin(folder: Path, provenance: Provenance, num_chunks: int) -> list[int]:
    """Create a folder, or resume one; return the numbers of the missing shards, ascending.

    Raises:
        DataError: The folder contains other files, or shards with another provenance or number of
            chunks (the message contains the first difference).
        LiquidError: The folder cannot be written.
    """
    # check before the manifest, which another process may be writing right now
    occupied = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    exists = (folder / MANIFEST).exists()
    complete = exists and _check(folder, provenance, num_chunks).complete
    if occupied and not exists:
        raise DataError(
            f"{folder}: contains other files and no {MANIFEST}. Choose an empty or a new folder."
        )
    names = {path.name for path in _shard_paths(folder)}
    missing = [number for number in range(num_chunks) if shard_name(number) not in names]
    if not exists or (complete and missing):
        _write_manifest(folder, provenance, num_chunks, shards=(), complete=False)
    return missing


def write_shard(
    folder: Path,
    number: int,
    chunk: str,
    samples: Sequence[Sample],
    rejected: Sequence[RejectedSample],
    codebook_size: int,
) -> Path:
    """Write one shard and return its path; equal samples give equal bytes.

    Args:
        folder: The folder of shards.
        number: Number of the shard, from 0.
        chunk: Name of the source chunk that the samples are made from, for messages.
        samples: Samples of the chunk in any order; they are grouped by kind.
        rejected: Entries of the chunk that were rejected.
        codebook_size: Number of codes of the image tokenizer, at most 65,536.

    Raises:
        DataError: A code is outside the codebook, or the samples do not fit one shard.
        LiquidError: The file cannot be written.
    """
    for sample in samples:
        for codes in sample.image_codes:
            if int(codes.max()) >= codebook_size:
                raise DataError(
                    f"{sample.key}: code {int(codes.max())} is not in the codebook of "
                    f"{codebook_size}. Check the image tokenizer."
                )
    ordered = [sample for kind in SAMPLE_KINDS for sample in samples if sample.kind == kind]
    info = ShardInfo(
        schema_version=SCHEMA_VERSION,
        chunk=chunk,
        stats=shard_stats(ordered, len(rejected)),
        rejected=tuple(rejected),
    )
    metadata = {METADATA_KEY: json.dumps(to_dict(info), sort_keys=True).encode()}
    batch = _to_batch(ordered)
    path = folder / shard_name(number)
    schema = SCHEMA.with_metadata(metadata)
    with atomic_file(path) as temporary, ipc.new_file(str(temporary), schema) as file:
        file.write_batch(batch)
    return path


def count_records(folder: Path) -> ShardStats:
    """Sum the statistics of the shards on disk, reading a few KB of each.

    Raises:
        DataError: A file is not a shard.
    """
    return add_stats([read_info(path).stats for path in _shard_paths(folder)])


def write_rejected(folder: Path) -> Path:
    """Write the rejected entries of the shards on disk, one JSON object per line.

    Raises:
        DataError: A file is not a shard.
        LiquidError: The file cannot be written.
    """
    path = folder / REJECTED
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for shard in _shard_paths(folder):
            for entry in read_info(shard).rejected:
                file.write(json.dumps(to_dict(entry), ensure_ascii=False) + "\n")
    return path


def finish(folder: Path, provenance: Provenance, num_chunks: int) -> Manifest:
    """Write the manifest and `rejected.jsonl` of a folder whose shards are all written.

    Reads every shard to compute its checksum and removes temporary files of killed processes, so no
    other process may be writing.

    Raises:
        DataError: A shard is missing or damaged, or the folder was started with other settings.
        LiquidError: The folder cannot be written.
    """
    before = _check(folder, provenance, num_chunks)
    paths = [folder / shard_name(number) for number in range(num_chunks)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {num_chunks} shards are missing; the first is "
            f"{missing[0]}. Run the same liquid encode again."
        )
    if before.complete:
        return before
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(_describe, paths))
    write_rejected(folder)
    manifest = _write_manifest(folder, provenance, num_chunks, shards=shards, complete=True)
    for left_over in folder.glob(".shard-*.arrow*"):
        left_over.unlink(missing_ok=True)
    return manifest


def _check(folder: Path, provenance: Provenance, num_chunks: int) -> Manifest:
    """Read the manifest and compare it with this run; only the path of the source can differ."""
    manifest = read_manifest(folder)
    old, new = _flat(manifest.provenance), _flat(provenance)
    old["num_chunks"], new["num_chunks"] = manifest.num_chunks, num_chunks
    for name in sorted(old.keys() | new.keys()):
        if name != "source" and old.get(name) != new.get(name):
            raise DataError(
                f"{folder}: encoded with {name} {old.get(name)!r}, but this run has "
                f"{new.get(name)!r}. Choose another folder, or remove this one."
            )
    return manifest


def _flat(provenance: Provenance) -> dict[str, object]:
    values = to_dict(provenance)
    settings = values.pop("settings")
    return values | {f"settings.{name}": value for name, value in settings.items()}


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def _describe(path: Path) -> Shard:
    info = read_info(path)
    return Shard(
        name=path.name,
        chunk=info.chunk,
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        stats=info.stats,
    )


def _write_manifest(
    folder: Path,
    provenance: Provenance,
    num_chunks: int,
    *,
    shards: Sequence[Shard],
    complete: bool,
) -> Manifest:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        provenance=provenance,
        complete=complete,
        num_chunks=num_chunks,
        columns={field.name: str(field.type) for field in SCHEMA},
        totals=add_stats([shard.stats for shard in shards]),
        shards=tuple(shards),
    )
    with atomic_file(folder / MANIFEST) as temporary:
        text = json.dumps(to_dict(manifest), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return manifest


def _to_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        name: [getattr(sample, name) for sample in samples]
        for name in ("kind", "key", "source", "license", "text", "captions")
    }
    for name in ("kind", "source", "license"):
        columns[name] = pa.array(columns[name], pa.string()).dictionary_encode()
    columns["roles"] = [[turn.role for turn in sample.messages] for sample in samples]
    columns["contents"] = [[turn.content for turn in sample.messages] for sample in samples]
    columns["image_codes"] = _to_images([sample.image_codes for sample in samples])
    columns["crc32"] = [sample.checksum() for sample in samples]
    return pa.record_batch(columns, schema=SCHEMA)


def _to_images(image_codes: Sequence[Sequence[Codes]]) -> pa.Array:
    grids = [codes for of_sample in image_codes for codes in of_sample]
    sizes = [codes.size for codes in grids]
    if sum(sizes) > _MAX_CODES:
        raise DataError(
            f"shard: {sum(sizes)} codes, but at most {_MAX_CODES} fit. Use fewer samples per shard."
        )
    flat = np.concatenate([codes.reshape(-1) for codes in grids]) if grids else np.zeros(0)
    codes = pa.ListArray.from_arrays(_offsets(sizes), pa.array(flat, pa.uint16()))
    sides = (pa.array([grid.shape[axis] for grid in grids], pa.uint16()) for axis in (0, 1))
    structs = pa.StructArray.from_arrays([*sides, codes], fields=list(IMAGE))
    return pa.ListArray.from_arrays(_offsets(map(len, image_codes)), structs)


def _offsets(sizes: Iterable[int]) -> pa.Array:
    return pa.array(list(accumulate(sizes, initial=0)), pa.int32())
