"""Sources of records: whatever people have, cut into parts and read entry by entry.

Contract: `parts` cuts a source into parts in a fixed order, without reading pictures and before
anything is parsed; `entries` yields what a part holds in order, good records and refused ones
alike, so that a caller can count and report both. The entries of all chunks, joined, are those of
the source, whatever the size of the parts. Nothing is skipped silently: where a file can't be read
on, one refused entry says so. In memory is a little of one file, whatever its size.

Formats, by suffix (each may be compressed: .gz, .zst, .bz2, .xz, .lz4):

===========  =================================================================================
jsonl        .jsonl, .ndjson, and .json that holds lines
json         .json that holds one array
csv          .csv, .tsv
parquet      .parquet
webdataset   .tar, .tgz
folder       a folder of pictures with a .txt beside each
huggingface  a folder of `save_to_disk`, or by hub id
===========  =================================================================================

A folder may also hold files of the others, or a `metadata.jsonl`, `.csv` or `.parquet` about the
pictures in it.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from liquidmm.data.readers import folder, hugging_face, registry
from liquidmm.data.readers.chunks import Chunk, FileRange, ParsedRecord, group_ranges
from liquidmm.data.readers.config import Fields, SourceConfig
from liquidmm.data.readers.files import is_url, open_file, parent, reason
from liquidmm.data.readers.schema import RecordSchema, paths
from liquidmm.data.records import Record
from liquidmm.errors import ConfigError, DataError

__all__ = [
    "Chunk",
    "Fields",
    "FileRange",
    "ParsedRecord",
    "SourceConfig",
    "digest",
    "list_chunks",
    "read_chunk",
    "read_jsonl",
    "read_records",
]

_CONTENT_BYTES = 2**28
"""Size of a source up to which its digest is that of its content."""
_CHUNK = 2**20
_AT_ONCE = 2**14  # entries in a part where nobody sees the parts
_LOOKED_AT = 100
"""Entries at either end and in the middle of a source whose fields are looked at."""


def list_chunks(config: SourceConfig, records: int) -> list[Chunk]:
    """Cut a source into parts.

    JSONL is cut at lines, Parquet at rows, a JSON array at items, a folder at pictures, so that a
    part holds about `records` entries; small files that follow each other make up one part. What
    can't be entered in the middle is a part of its own and may hold far more: a compressed file,
    and in Parquet a thirty-second of a row group. So read a part as a stream.

    Args:
        config: The source.
        records: Entries in a part, 1 or more.

    Returns:
        The parts in order, the same every time.

    Raises:
        ConfigError: A setting is wrong, or names fields that the source does not have.
        DataError: There is no such file, its format is unknown, or the source is empty.
    """
    if records < 1:
        raise ConfigError(f"records: is {records}. Give 1 or more.")
    form, files = registry.files_of(config)
    if form != "huggingface" and not any(file.size or file.folder for file in files):
        raise DataError(f"{_name(config)}: holds no entries (0 bytes). Check the source.")
    _check_root(config, form)
    rows = RecordSchema(config, files[0].name)
    found = list(group_ranges(registry.spans(form, files, rows, records), records, form))
    if not found:
        raise DataError(f"{_name(config)}: holds no entries. Check the source.")
    _check_fields(rows, found)
    return found


def read_chunk(config: SourceConfig, part: Chunk) -> Iterator[ParsedRecord]:
    """Yield what a part holds, refused entries included.

    Args:
        config: The source that the part was cut from.
        part: One of its parts.

    Yields:
        The entries in order, those of splits that are not taken left out.
    """
    for span in part.ranges:
        rows = RecordSchema(config, span.file)
        root = _image_root(config, span.file)
        for item in registry.items(part.format, span, rows):
            entry = rows.entry(item, root)
            if entry is not None:
                yield entry


def digest(config: SourceConfig) -> str:
    """Return a hash that changes when the files of a source do: 16 hex digits.

    Sources of up to 256 MiB are hashed by content, so that a copy has the same digest; larger ones
    and folders of pictures by names, sizes and times. Pictures that a file names don't count, nor
    does the configuration.

    Raises:
        DataError: There is no such file, or it can't be read.
    """
    form, files = registry.files_of(config)
    total = hashlib.sha256()
    by_content = sum(file.size for file in files) <= _CONTENT_BYTES
    try:
        for file in files:
            if form == "huggingface" and not Path(file.name).is_dir():
                total.update(hugging_face.fingerprints(file.name, config).encode())
            elif file.folder:
                for line in folder.stamps(file.name):
                    total.update(line.encode(errors="surrogateescape"))
            elif by_content:
                with open_file(file.name) as stream:
                    while chunk := stream.read(_CHUNK):
                        total.update(chunk)
            else:
                total.update(
                    f"{file.name}\0{file.size}\0{file.stamp}\n".encode(errors="surrogateescape")
                )
    except OSError as error:
        raise DataError(f"{_name(config)}: can't be read ({reason(error)}).") from error
    return total.hexdigest()[:16]


def read_records(config: SourceConfig) -> Iterator[Record]:
    """Yield the records of a source, strictly.

    Raises:
        ConfigError: See `parts`.
        DataError: See `parts`; or the first bad entry, with its place.
    """
    for part in list_chunks(config, _AT_ONCE):
        for entry in read_chunk(config, part):
            if entry.record is None:
                raise DataError(entry.problem)
            yield entry.record


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file; picture paths are relative to the file's folder.

    Raises:
        DataError: There is no such file, or the first bad line, with file and line.
    """
    return read_records(SourceConfig(path=str(path), format="jsonl"))


def _name(config: SourceConfig) -> str:
    return ", ".join(config.paths)


def _check_root(config: SourceConfig, form: str) -> None:
    root = config.image_root
    if root is None:
        return
    if form == "folder":
        raise ConfigError(
            f"image_root: {_name(config)} is a folder of pictures itself. Leave it out."
        )
    if not is_url(root) and not Path(root).is_dir():
        raise ConfigError(f"image_root: no such folder '{root}'. Correct the path.")


def _image_root(config: SourceConfig, file: str) -> Path | str:
    if config.image_root is None:
        return parent(file)
    return config.image_root if is_url(config.image_root) else Path(config.image_root)


def _check_fields(rows: RecordSchema, found: list[Chunk]) -> None:
    """Look for the fields in the first, the middle and the last part: sets come sorted by kind.

    Tables have been looked at already. A tar or a folder is opened only where something is asked of
    it, and of tars only the first.
    """
    form = found[0].format
    asked = rows.given or rows.config.layout != "auto"
    if form in ("parquet", "huggingface") or (form in ("webdataset", "folder") and not asked):
        return
    chosen = [found[0], found[len(found) // 2], found[-1]]
    if form == "webdataset":
        chosen = chosen[:1]
    there: set[str] = set()
    for part in chosen:
        for item in islice(registry.items(form, part.ranges[0], rows), _LOOKED_AT):
            there |= paths(item.value)
    if there:
        rows.check(there, _name(rows.config))
