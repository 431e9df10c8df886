"""One shard: an Arrow IPC file of one record batch that is mapped into memory, not read.

Contract: a shard appears whole or not at all, never changes afterwards, and is a pure function of
what it was given: equal rows give equal bytes. Rows stand grouped by kind, in the order of
`ROW_KINDS`, and within a kind in the order they came in. The file carries its tallies, its refused
entries and the name of its part of the source. Every row carries a CRC-32 of its values, checked
when it is read. Nothing is compressed, so that a row costs its own bytes: 2 for a code, about 80
for the rest of a picture without its words.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from liquidmm.config import from_dict, to_dict
from liquidmm.data.manifest import SCHEMA_VERSION, RejectedSample, ShardStats
from liquidmm.data.records import Message
from liquidmm.errors import DataError
from liquidmm.files import atomic_file

Kind: TypeAlias = Literal["text", "image_text", "chat"]
ROW_KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of row, in the order in which they stand in a shard."""

Codes: TypeAlias = np.ndarray[Any, np.dtype[np.uint16]]

_INFO = b"liquidmm"
_NAME = pa.dictionary(pa.int32(), pa.string())
_STRING = pa.large_string()  # the texts of a shard may be longer than 2 GiB together
_PICTURE = pa.struct(
    [("height", pa.uint16()), ("width", pa.uint16()), ("codes", pa.list_(pa.uint16()))]
)
_SCHEMA = pa.schema(
    [
        ("kind", _NAME),
        ("key", _STRING),
        ("source", _NAME),
        ("license", _NAME),
        ("text", _STRING),
        ("captions", pa.list_(_STRING)),
        ("roles", pa.list_(_STRING)),
        ("contents", pa.list_(_STRING)),
        ("pictures", pa.list_(_PICTURE)),
        ("crc32", pa.uint32()),
    ]
)
_MOST = 2**31 - 1

COLUMNS: dict[str, str] = {field.name: str(field.type) for field in _SCHEMA}
"""Name and Arrow type of every column."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """What a shard says about itself."""

    schema_version: int
    """Version of the layout."""
    part: str
    """Name of the part of the source that it was made from."""
    tallies: ShardStats
    """What it holds."""
    refusals: tuple[RejectedSample, ...]
    """The entries of the part that did not become rows."""


def shard_name(number: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"shard-{number:05d}.arrow"


def write_shard(
    folder: Path,
    number: int,
    part: str,
    rows: Sequence[Row],
    refusals: Sequence[RejectedSample],
    codebook_size: int,
) -> Path:
    """Write one shard.

    Args:
        folder: The folder of shards.
        number: Number of the shard, from 0.
        part: Name of the part of the source that the rows are made from, for messages.
        rows: Its rows; may be empty when all entries were refused.
        refusals: The entries that did not become rows.
        codebook_size: Number of codes of the image tokenizer, at most 65,536.

    Returns:
        The file.

    Raises:
        DataError: A row holds a code outside the codebook, or the rows are too many for one shard.
        LiquidError: The disk refused.
    """
    _check_codes(rows, codebook_size)
    ordered = [row for kind in ROW_KINDS for row in rows if row.kind == kind]
    info = ShardInfo(
        schema_version=SCHEMA_VERSION,
        part=part,
        tallies=_count(ordered, len(refusals)),
        refusals=tuple(refusals),
    )
    batch = _to_batch(ordered)
    text = json.dumps(to_dict(info), sort_keys=True)
    schema = _SCHEMA.with_metadata({_INFO: text.encode()})
    path = folder / shard_name(number)
    with atomic_file(path) as temporary, ipc.new_file(str(temporary), schema) as file:
        file.write_batch(batch)
    return path


def read_info(path: Path) -> ShardInfo:
    """Read what a shard says about itself, without its rows.

    Raises:
        DataError: It is missing or not a shard.
    """
    try:
        with pa.memory_map(str(path)) as source:
            data = json.loads(ipc.open_file(source).schema.metadata[_INFO])
        return from_dict(ShardInfo, data, str(path))
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise _no_shard(path, error) from error


class ShardFile:
    """The rows of one shard by number; only the rows that are asked for are brought to memory."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            DataError: It is missing or not a shard.
        """
        self._path = path
        try:
            with pa.memory_map(str(path)) as source:
                batch = ipc.open_file(source).get_batch(0)
            if not batch.schema.equals(_SCHEMA):
                raise ValueError("other columns")
            batch.validate()  # every buffer is as long as it should be
            self._set_up(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _no_shard(path, error) from error

    def _set_up(self, batch: pa.RecordBatch) -> None:
        self._count: int = batch.num_rows
        column = batch.column
        self._kind = _names(column("kind"))
        self._key = _strings(column("key"))
        self._source = _names(column("source"))
        self._license = _names(column("license"))
        self._text = _strings(column("text"))
        self._captions = _lists(column("captions"), _strings)
        self._roles = _lists(column("roles"), _strings)
        self._contents = _lists(column("contents"), _strings)
        self._pictures = _lists(column("pictures"), _grids)
        self._crc32 = column("crc32").to_numpy()

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        """Put one row together.

        Raises:
            DataError: Its values are not those that were written.
        """
        try:
            row = Row(
                kind=self._kind(index),
                key=self._key(index),
                source=self._source(index),
                license=self._license(index),
                text=self._text(index),
                captions=self._captions(index),
                messages=tuple(
                    Message(role=role, content=content)
                    for role, content in zip(self._roles(index), self._contents(index), strict=True)
                ),
                pictures=self._pictures(index),
            )
            if _crc32(row) != self._crc32[index]:
                raise ValueError("its checksum is another one")
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{self._path}: row {index} is damaged ({error}). Run liquid data validate on the "
                "folder, which names what to encode again."
            ) from error
        return row


def _no_shard(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: missing or not a shard of this program ({error}). Remove it and run "
        "liquid encode again."
    )


def _crc32(row: Row) -> int:
    words = [row.kind, row.key, row.source, row.license, row.text, *row.captions]
    words += (word for message in row.messages for word in (message.role, message.content))
    check = zlib.crc32("\0".join(words).encode())
    for codes in row.pictures:
        check = zlib.crc32(codes.tobytes(), zlib.crc32(b"%d %d" % codes.shape, check))
    return check


def _check_codes(rows: Iterable[Row], codebook_size: int) -> None:
    for row in rows:
        for codes in row.pictures:
            if int(codes.max()) >= codebook_size:
                raise DataError(
                    f"{row.key}: code {int(codes.max())} with a codebook of {codebook_size}. "
                    "Check the image tokenizer."
                )


def _count(rows: Sequence[Row], refused: int) -> ShardStats:
    characters: Counter[str] = Counter()
    for row in rows:
        turns = (message.content for message in row.messages)
        characters[row.kind] += sum(map(len, (row.text, *row.captions, *turns)))
    return ShardStats(
        records=len(rows),
        refused=refused,
        pictures=sum(len(row.pictures) for row in rows),
        kinds=dict(Counter(row.kind for row in rows)),
        characters=dict(characters),
        licenses=dict(Counter(row.license for row in rows)),
        sources=dict(Counter(row.source for row in rows)),
        sizes=dict(Counter(f"{c.shape[1]} x {c.shape[0]}" for row in rows for c in row.pictures)),
    )


def _to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(row, name) for row in rows], pa.string()).dictionary_encode()
        for name in ("kind", "source", "license")
    }
    for name in ("key", "text", "captions"):
        columns[name] = pa.array([getattr(row, name) for row in rows], _SCHEMA.field(name).type)
    turns = _SCHEMA.field("roles").type
    columns["roles"] = pa.array([[m.role for m in row.messages] for row in rows], turns)
    columns["contents"] = pa.array([[m.content for m in row.messages] for row in rows], turns)
    columns["pictures"] = _to_pictures([row.pictures for row in rows])
    columns["crc32"] = pa.array([_crc32(row) for row in rows], pa.uint32())
    return pa.record_batch([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _to_pictures(pictures: Sequence[Sequence[Codes]]) -> pa.Array:
    grids = [codes for of_row in pictures for codes in of_row]
    sizes = [codes.size for codes in grids]
    if sum(sizes) > _MOST:
        raise DataError(
            f"shard: holds {sum(sizes)} codes, at most {_MOST} fit. Make the parts of the source "
            "smaller."
        )
    flat = np.concatenate([codes.reshape(-1) for codes in grids]) if grids else np.zeros(0)
    codes = pa.ListArray.from_arrays(_offsets(sizes), pa.array(flat, pa.uint16()))
    sides = (pa.array([grid.shape[axis] for grid in grids], pa.uint16()) for axis in (0, 1))
    structs = pa.StructArray.from_arrays([*sides, codes], fields=list(_PICTURE))
    return pa.ListArray.from_arrays(_offsets(map(len, pictures)), structs)


def _offsets(sizes: Iterable[int]) -> pa.Array:
    return pa.array(list(accumulate(sizes, initial=0)), pa.int32())


# Values are cut out of the columns' buffers with bounds that Python checks, so that a damaged
# offset ends in an error and not in another process's memory; it is also the fastest way.


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


def _grids(column: pa.StructArray) -> Callable[[int], Codes]:
    heights, widths = (column.field(side).to_numpy() for side in ("height", "width"))
    ends, flat = column.field("codes").offsets.to_numpy(), column.field("codes").values.to_numpy()
    return lambda place: flat[ends[place] : ends[place + 1]].reshape(heights[place], widths[place])
