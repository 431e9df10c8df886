"""The content of `manifest.json`: what a folder of shards contains and what it was made from.

A `Provenance` determines the samples of a folder: two runs with equal provenance write equal
shards. A folder's statistics are the sums of its shards' statistics.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from liquidmm.config import from_dict
from liquidmm.errors import ConfigError, DataError

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedSample:
    """An entry of the source that could not be encoded."""

    source: str
    """File or folder that contains it."""
    line: int
    """Line in the file, from 1; index in a JSON array or a Parquet file, from 0; 0 in a folder."""
    where: str
    """`file:line`, `file[index]`, or the path of the image."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Everything that determines the samples of a folder; it must not change between runs."""

    fingerprint: str
    """Fingerprint of the image tokenizer."""
    codebook_size: int
    downsample_factor: int
    """Pixels per code along each side."""
    source: str
    """Path of the source as given; this can change between runs."""
    source_digest: str
    """Hash of the content of the source."""
    settings: dict[str, Any]
    """Settings that determine which records are encoded and how their images are resized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStats:
    """Counts of one shard or of a whole folder."""

    records: int = 0
    """Samples."""
    rejected: int = 0
    """Number of rejected entries of the source."""
    images: int = 0
    """Number of images in the samples."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Number of samples of each kind."""
    characters: dict[str, int] = field(default_factory=dict)
    """Characters of text, captions and turns, for each kind."""
    licenses: dict[str, int] = field(default_factory=dict)
    """Number of samples under each license; the empty name counts samples without one."""
    sources: dict[str, int] = field(default_factory=dict)
    """Number of samples from each dataset."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of images of each size in codes, written `width x height`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a folder."""

    name: str
    chunk: str
    """Name of the source chunk it was made from."""
    bytes: int
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    stats: ShardStats


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    schema_version: int
    provenance: Provenance
    complete: bool
    """Whether all shards are written; until then, no shards are listed."""
    num_chunks: int
    """Number of chunks in the source, which equals the number of shards."""
    columns: dict[str, str]
    """Name and Arrow type of every column of a shard."""
    totals: ShardStats
    """Sum over all listed shards."""
    shards: tuple[Shard, ...]


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of shards.

    Raises:
        DataError: The file is missing or damaged, or has another version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{folder}: not a folder of shards (no {MANIFEST}). Create one with liquid encode."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: invalid JSON ({error}). Encode the source again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: expected schema version {SCHEMA_VERSION}, got {version}. Folders from other "
            "versions cannot be read: encode the source again, into a new folder."
        )
    try:
        return from_dict(Manifest, data, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from error


def summary(folder: Path) -> dict[str, Any]:
    """Return counts, mean lengths and sizes for a complete or incomplete folder, as JSON values.

    Raises:
        DataError: The manifest cannot be read.
    """
    manifest = read_manifest(folder)
    totals, provenance = manifest.totals, manifest.provenance
    return {
        "folder": str(folder),
        "complete": manifest.complete,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "records": totals.records,
        "rejected": totals.rejected,
        "images": totals.images,
        "kinds": totals.kinds,
        "mean_characters": {
            kind: round(totals.characters.get(kind, 0) / count, 1)
            for kind, count in totals.kinds.items()
        },
        "sizes_in_codes": totals.sizes,
        "licenses": totals.licenses,
        "sources": totals.sources,
        "image_tokenizer": {
            "fingerprint": provenance.fingerprint,
            "codebook_size": provenance.codebook_size,
            "downsample_factor": provenance.downsample_factor,
        },
    }


def add_stats(stats: Sequence[ShardStats]) -> ShardStats:
    """Return the sum of the statistics of several shards."""
    totals: dict[str, Any] = {}
    for name in (item.name for item in fields(ShardStats)):
        values = [getattr(each, name) for each in stats]
        if name in ("records", "rejected", "images"):
            totals[name] = sum(values)
        else:
            totals[name] = dict(sorted(sum(map(Counter, values), Counter()).items()))
    return ShardStats(**totals)
