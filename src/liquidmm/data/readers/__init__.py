"""Readers of datasets: a source is divided into chunks, and a chunk is read record by record.

Chunking is deterministic, and reading the chunks in order gives the records of the source in order,
for any chunk size. Rejected records are yielded with a reason, so nothing is lost silently. Memory
use does not depend on the size of the files.

Formats, by suffix (each can be compressed: .gz, .zst, .bz2, .xz, .lz4):

===========  =================================================================================
jsonl        .jsonl, .ndjson, and .json that contains lines
json         .json that contains one array
csv          .csv, .tsv
parquet      .parquet
webdataset   .tar, .tgz
folder       a folder of images, each with a .txt file of captions
huggingface  a folder written by `save_to_disk`, or a hub id
===========  =================================================================================

A folder can also contain files of the other formats, or a `metadata.jsonl`, `.csv` or `.parquet`
that describes its images.
"""

from collections.abc import Iterator
from pathlib import Path

from liquidmm.data.readers import registry
from liquidmm.data.readers.chunks import Chunk, ParsedRecord, group_ranges
from liquidmm.data.readers.config import Fields, SourceConfig
from liquidmm.data.readers.files import is_url
from liquidmm.data.readers.registry import digest
from liquidmm.data.readers.schema import RecordSchema
from liquidmm.data.records import Record
from liquidmm.errors import ConfigError, DataError

__all__ = [
    "Chunk",
    "Fields",
    "ParsedRecord",
    "SourceConfig",
    "digest",
    "list_chunks",
    "read_chunk",
    "read_jsonl",
    "read_records",
]

_RECORDS = 2**14  # per chunk in `read_records`


def list_chunks(config: SourceConfig, records: int) -> list[Chunk]:
    """Divide a source into chunks of about `records` records; small files share a chunk.

    A compressed file is always one chunk, and a Parquet row group gives at most 32 chunks, so a
    chunk can be much larger: read it as a stream.

    Raises:
        ConfigError: A setting is invalid, or names a field that the source does not have.
        DataError: A file does not exist, its format is unknown, or the source is empty.
    """
    if records < 1:
        raise ConfigError(f"records: expected at least 1, got {records}.")
    name = ", ".join(config.paths)
    form, files = registry.files_of(config)
    if form != "huggingface" and not any(file.size or file.is_folder for file in files):
        raise DataError(f"{name}: contains no records (0 bytes). Check the source.")
    root = config.image_root
    if root is not None and form == "folder":
        raise ConfigError(f"image_root: cannot be used with a folder of images ({name}).")
    if root is not None and not is_url(root) and not Path(root).is_dir():
        raise ConfigError(f"image_root: no such folder '{root}'. Correct the path.")
    schema = RecordSchema(config, files[0].name)
    chunks = list(group_ranges(registry.cut(form, files, schema, records), records, form))
    if not chunks:
        raise DataError(f"{name}: contains no records. Check the source.")
    registry.check_fields(form, [chunk.ranges[0] for chunk in chunks], schema)
    return chunks


def read_chunk(config: SourceConfig, chunk: Chunk) -> Iterator[ParsedRecord]:
    """Yield the records of the selected splits in a chunk, in order, including rejected ones."""
    for item in chunk.ranges:
        schema = RecordSchema(config, item.file)
        for raw in registry.read(chunk.format, item, schema):
            record = schema.parse(raw)
            if record is not None:
                yield record


def read_records(config: SourceConfig) -> Iterator[Record]:
    """Yield the records of a source; a rejected record is an error.

    Raises:
        ConfigError: See `list_chunks`.
        DataError: See `list_chunks`, or a record was rejected.
    """
    for chunk in list_chunks(config, _RECORDS):
        for parsed in read_chunk(config, chunk):
            if parsed.record is None:
                raise DataError(parsed.problem)
            yield parsed.record


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file; see `read_records`."""
    return read_records(SourceConfig(path=str(path), format="jsonl"))
