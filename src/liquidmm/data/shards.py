"""The encoded data set: Parquet shards of rows, and the manifest that says what made them.

Contract: a shard file appears whole or not at all and never changes afterwards. It carries its own
tallies and refused entries, so `manifest.json` and `quarantine.jsonl` are derived from the shards
and can be written again at any time. All shards of a folder have one `Origin`. Rows keep the order
of the source; codes are stored row by row as uint16.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from liquidmm.config import from_dict, to_dict
from liquidmm.data.manifest import (
    MANIFEST,
    QUARANTINE,
    SCHEMA_VERSION,
    Manifest,
    Origin,
    Refusal,
    Tallies,
    add_up,
    check_origin,
    read_manifest,
)
from liquidmm.data.records import Message
from liquidmm.errors import DataError
from liquidmm.runtime import atomic_file

Kind: TypeAlias = Literal["text", "image_text", "chat"]
Codes: TypeAlias = np.ndarray[Any, np.dtype[np.uint16]]

_TALLIES = b"liquidmm"
_STRINGS = pa.list_(pa.string())
_PICTURE = pa.struct(
    [("height", pa.uint16()), ("width", pa.uint16()), ("codes", pa.list_(pa.uint16()))]
)
_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("text", pa.string()),
        ("captions", _STRINGS),
        ("roles", _STRINGS),
        ("contents", _STRINGS),
        ("pictures", pa.list_(_PICTURE)),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record with its pictures as codes; fields that its kind does not have are empty."""

    kind: Kind
    """Which kind of record it was."""
    key: str
    """Name of the record, used in messages."""
    source: str = ""
    """Data set the record comes from."""
    license: str = ""
    """SPDX name of the licence, empty when unknown."""
    text: str = ""
    """The document of a text row."""
    captions: tuple[str, ...] = ()
    """The captions of an image_text row, the canonical one first."""
    messages: tuple[Message, ...] = ()
    """The turns of a chat row."""
    pictures: tuple[Codes, ...] = ()
    """Codes of each picture, (h, w) uint16, in [0, codebook_size)."""


class ShardWriter:
    """Appends shards to a folder and keeps its manifest; finds those an earlier run finished."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        """Open a new folder, or one that was begun with the same origin.

        Raises:
            DataError: The folder holds shards of another origin; the first difference is named.
        """
        self.folder = folder
        self.origin = origin
        if (folder / MANIFEST).exists():
            check_origin(read_manifest(folder).origin, origin, folder)
        elif folder.is_dir() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: holds other files and no {MANIFEST}. Choose an empty or a new folder."
            )
        self._tallies: list[Tallies] = []
        self._refusals: list[Refusal] = []
        while self._path(self.finished).exists():
            self._remember(self._path(self.finished))
        self._write_manifest(complete=False)

    @property
    def finished(self) -> int:
        """Number of shards that are on disk."""
        return len(self._tallies)

    @property
    def totals(self) -> Tallies:
        """Tallies of the shards that are on disk."""
        return add_up(self._tallies)

    def write(self, rows: Sequence[Row], refusals: Sequence[Refusal]) -> None:
        """Write the next shard and bring manifest and quarantine up to date.

        Args:
            rows: The rows of the shard; may be empty when all entries were refused.
            refusals: The entries that did not become rows.

        Raises:
            DataError: A row holds a code outside the codebook.
            LiquidError: The disk refused.
        """
        path = self._path(self.finished)
        tallies = _count(rows, len(refusals))
        info = {"tallies": to_dict(tallies), "refusals": [to_dict(r) for r in refusals]}
        table = _to_table(rows, self.origin.codebook_size)
        table = table.replace_schema_metadata({_TALLIES: json.dumps(info).encode()})
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        self._tallies.append(tallies)
        self._refusals.extend(refusals)
        self._write_manifest(complete=False)

    def close(self) -> Manifest:
        """Mark the folder as complete and return its manifest."""
        return self._write_manifest(complete=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.parquet"

    def _remember(self, path: Path) -> None:
        try:
            info = json.loads(pq.read_schema(path).metadata[_TALLIES])
            self._tallies.append(from_dict(Tallies, info["tallies"], str(path)))
            self._refusals.extend(from_dict(Refusal, r, str(path)) for r in info["refusals"])
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: not a shard of this program ({error}). Remove it and run again."
            ) from error

    def _write_manifest(self, *, complete: bool) -> Manifest:
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            origin=self.origin,
            complete=complete,
            shards=tuple(self._path(number).name for number in range(self.finished)),
            totals=self.totals,
        )
        with atomic_file(self.folder / QUARANTINE) as temporary:
            lines = (json.dumps(to_dict(r), ensure_ascii=False) + "\n" for r in self._refusals)
            temporary.write_text("".join(lines), encoding="utf-8")
        with atomic_file(self.folder / MANIFEST) as temporary:
            text = json.dumps(to_dict(manifest), indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return manifest


class Shards:
    """The rows of a folder by number, in the order of the source."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open the files that the manifest names."""
        self.folder = folder
        self.manifest = manifest
        self._files = [_File(folder / name) for name in manifest.shards]
        self._ends = list(accumulate(len(file) for file in self._files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: row {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._files[number].row(index - (self._ends[number - 1] if number else 0))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Return the numbers of the rows that are of one of the kinds, ascending."""
        starts = [0, *self._ends]
        return [
            start + position
            for start, file in zip(starts, self._files, strict=False)
            for position, kind in enumerate(file.kinds())
            if kind in kinds
        ]


def read_shards(folder: Path) -> Shards:
    """Open a folder that `liquid encode` finished.

    Args:
        folder: Folder with `manifest.json` and its shard files.

    Returns:
        Its rows by number.

    Raises:
        DataError: No such folder, encoding was not finished, or a shard is missing or broken.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(
            f"{folder}: encoding was not finished ({manifest.totals.records} records so far). "
            "Run the same liquid encode again to finish it."
        )
    return Shards(folder, manifest)


class _File:
    """The columns of one shard; a row is put together when it is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            table = pq.read_table(path, schema=_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: missing or not a shard ({error}). Remove it and run liquid encode again."
            ) from error
        self._columns = {name: table.column(name).combine_chunks() for name in _SCHEMA.names}
        pictures = self._columns.pop("pictures")
        codes = pictures.values.field("codes")
        self._first = pictures.offsets.to_numpy()
        self._heights = pictures.values.field("height").to_numpy()
        self._begin = codes.offsets.to_numpy()
        self._codes = codes.values.to_numpy()

    def __len__(self) -> int:
        return len(self._columns["kind"])

    def kinds(self) -> list[str]:
        """Return the kind of every row."""
        kinds: list[str] = self._columns["kind"].to_pylist()
        return kinds

    def row(self, index: int) -> Row:
        """Put one row together."""
        cell = {name: column[index].as_py() for name, column in self._columns.items()}
        roles, contents = cell.pop("roles"), cell.pop("contents")
        pictures = range(self._first[index], self._first[index + 1])
        return Row(
            **(cell | {"captions": tuple(cell["captions"])}),
            messages=tuple(
                Message(role=role, content=content)
                for role, content in zip(roles, contents, strict=True)
            ),
            pictures=tuple(self._picture(number) for number in pictures),
        )

    def _picture(self, number: int) -> Codes:
        flat = self._codes[self._begin[number] : self._begin[number + 1]]
        codes: Codes = flat.reshape(self._heights[number], -1)
        return codes


def _to_table(rows: Sequence[Row], codebook_size: int) -> pa.Table:
    for row in rows:
        for codes in row.pictures:
            if int(codes.max()) >= codebook_size:
                raise DataError(
                    f"{row.key}: code {int(codes.max())} with a codebook of {codebook_size}. "
                    "Check the image tokenizer."
                )
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows]
        for name in ("kind", "key", "source", "license", "text", "captions")
    }
    columns["roles"] = [[message.role for message in row.messages] for row in rows]
    columns["contents"] = [[message.content for message in row.messages] for row in rows]
    columns["pictures"] = [
        [
            {"height": codes.shape[0], "width": codes.shape[1], "codes": codes.reshape(-1)}
            for codes in row.pictures
        ]
        for row in rows
    ]
    return pa.table(columns, schema=_SCHEMA)


def _count(rows: Sequence[Row], refused: int) -> Tallies:
    characters: Counter[str] = Counter()
    for row in rows:
        turns = (message.content for message in row.messages)
        characters[row.kind] += sum(map(len, (row.text, *row.captions, *turns)))
    return Tallies(
        records=len(rows),
        refused=refused,
        pictures=sum(len(row.pictures) for row in rows),
        kinds=dict(Counter(row.kind for row in rows)),
        characters=dict(characters),
        licenses=dict(Counter(row.license for row in rows)),
        sources=dict(Counter(row.source for row in rows)),
        sizes=dict(Counter(f"{c.shape[1]} x {c.shape[0]}" for row in rows for c in row.pictures)),
    )
