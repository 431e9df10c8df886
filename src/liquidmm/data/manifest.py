"""What a folder of shards holds and what made it: the content of `manifest.json`.

Contract: an `Provenance` decides the rows of a folder; two runs with equal origins write equal rows.
ShardStats add up: those of a folder are the sum of those of its shards.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import ConfigError, DataError

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
REJECTED = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedSample:
    """An entry of the source that did not become a row."""

    source: str
    """File or folder it came from."""
    line: int
    """Line in the file, from 1; index in a JSON array or a Parquet file, from 0; 0 in a folder."""
    where: str
    """`file:line`, `file[index]`, or the path of the picture."""
    reason: str
    """The message that was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What the rows of a folder were made from; it must not change from run to run."""

    fingerprint: str
    """Fingerprint of the image tokenizer."""
    codebook_size: int
    """Number of codes of the image tokenizer."""
    downsample_factor: int
    """Pixels per code and side."""
    source: str
    """Path of the source as it was given."""
    source_digest: str
    """Hash that changes when the source does."""
    settings: dict[str, Any]
    """What decided which records went in and how their pictures were prepared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStats:
    """What one shard, or a whole folder, holds."""

    records: int = 0
    """Rows."""
    refused: int = 0
    """Entries that went to quarantine instead."""
    pictures: int = 0
    """Pictures in the rows."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Rows of each kind."""
    characters: dict[str, int] = field(default_factory=dict)
    """Characters of text, captions and turns in the rows of each kind."""
    licenses: dict[str, int] = field(default_factory=dict)
    """Rows under each licence; the empty name counts those without one."""
    sources: dict[str, int] = field(default_factory=dict)
    """Rows of each data set."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Pictures of each size in codes, written `width x height`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a folder."""

    name: str
    """File name."""
    part: str
    """Name of the part of the source that it was made from."""
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    tallies: ShardStats
    """What it holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    schema_version: int
    """Version of the layout of the folder."""
    origin: Provenance
    """What the rows were made from."""
    complete: bool
    """Whether all shards are there; before, they are not listed."""
    parts: int
    """Number of parts of the source, which is the number of shards."""
    columns: dict[str, str]
    """Name and Arrow type of every column of a shard."""
    totals: ShardStats
    """ShardStats of all shards that are listed."""
    shards: tuple[Shard, ...]
    """The shards in order."""


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of shards.

    Raises:
        DataError: There is none, it is broken, or another version of the program wrote it.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{folder}: not a folder of shards (no {MANIFEST}). Make one with liquid encode."
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). Encode the source again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}. "
            "Encode the source again, into a new folder."
        )
    try:
        return from_dict(Manifest, data, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from error


def summary(folder: Path) -> dict[str, Any]:
    """Say what a folder of shards holds, from its manifest alone.

    Args:
        folder: Folder that `liquid encode` wrote, finished or not.

    Returns:
        JSON-able values: counts, mean lengths in characters per kind, sizes in codes, licences,
        data sets and the image tokenizer.

    Raises:
        DataError: The folder holds no shards.
    """
    manifest = read_manifest(folder)
    totals, origin = manifest.totals, manifest.origin
    return {
        "folder": str(folder),
        "complete": manifest.complete,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "records": totals.records,
        "refused": totals.refused,
        "pictures": totals.pictures,
        "kinds": totals.kinds,
        "mean_characters": {
            kind: round(totals.characters.get(kind, 0) / count, 1)
            for kind, count in totals.kinds.items()
        },
        "sizes_in_codes": totals.sizes,
        "licenses": totals.licenses,
        "sources": totals.sources,
        "image_tokenizer": {
            "fingerprint": origin.fingerprint,
            "codebook_size": origin.codebook_size,
            "downsample_factor": origin.downsample_factor,
        },
    }


def add_up(parts: Sequence[ShardStats]) -> ShardStats:
    """Return the tallies of all parts together."""
    return ShardStats(
        records=sum(part.records for part in parts),
        refused=sum(part.refused for part in parts),
        pictures=sum(part.pictures for part in parts),
        kinds=_merge(part.kinds for part in parts),
        characters=_merge(part.characters for part in parts),
        licenses=_merge(part.licenses for part in parts),
        sources=_merge(part.sources for part in parts),
        sizes=_merge(part.sizes for part in parts),
    )


def _merge(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def check_origin(old: Provenance, new: Provenance, folder: Path) -> None:
    """Refuse to mix rows of two origins in one folder; the path of the source may differ.

    Raises:
        DataError: They differ; the first difference is named.
    """
    before, now = to_dict(old), to_dict(new)
    before |= {f"settings.{name}": value for name, value in before.pop("settings").items()}
    now |= {f"settings.{name}": value for name, value in now.pop("settings").items()}
    for name in sorted(before.keys() | now.keys()):
        if name != "source" and before.get(name) != now.get(name):
            raise DataError(
                f"{folder}: was encoded with {name} {before.get(name)!r}, now it is "
                f"{now.get(name)!r}. Choose another folder, or remove this one."
            )


def check_parts(old: int, new: int, folder: Path) -> None:
    """Refuse to go on with a source that is divided otherwise.

    Raises:
        DataError: The numbers of parts differ.
    """
    if old != new:
        raise DataError(
            f"{folder}: was begun with {old} parts, now there are {new}. Choose another folder, or "
            "remove this one."
        )
