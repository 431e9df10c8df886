"""The formats of sources: told by the name of a file, cut into spans, read as items.

Contract: a source has one format. Which one is said in the run file or told by the names of its
files; a `.json` file is looked into, since it holds either one array or lines.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType

from liquidmm.data.sources import arrays, folder, jsonl, parquet
from liquidmm.data.sources.config import SourceConfig
from liquidmm.data.sources.files import File, stem
from liquidmm.data.sources.part import Item, Span
from liquidmm.data.sources.rows import Rows
from liquidmm.errors import ConfigError, DataError

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
)
"""Suffix of a file, before that of its compression -> format."""

_KNOWN = f"Give a folder of pictures or files of these kinds: {', '.join(SUFFIXES)}."


def format_of(config: SourceConfig, files: Sequence[File]) -> str:
    """Return the format of a source, never `auto`.

    Raises:
        DataError: A file is of an unknown format, or two files differ in theirs.
        ConfigError: The format that the configuration names does not fit.
    """
    if config.format != "auto":
        if (config.format == "folder") != files[0].folder:
            what = "a folder" if files[0].folder else "a file"
            raise ConfigError(f"format: is '{config.format}', but {files[0].name} is {what}.")
        return config.format
    first = _format_of(files[0])
    for file in files[1:]:
        other = _format_of(file)
        if other != first:
            raise DataError(
                f"{file.name}: is {other}, but {files[0].name} is {first}. Encode them apart."
            )
    return first


def spans(form: str, files: Sequence[File], rows: Rows, records: int) -> Iterator[Span]:
    """Cut the files of a source into spans, in order.

    Raises:
        ConfigError: Fields that the configuration names are not there.
        DataError: Files differ in their columns.
    """
    match form:
        case "jsonl":
            for file in files:
                yield from jsonl.spans(file, records)
        case "json":
            for file in files:
                yield from arrays.spans(file, records)
        case "folder":
            for file in files:
                yield from folder.spans(file, records)
        case "parquet":
            footers = parquet.footers(files)
            _check_columns(files, footers, rows)
            for file, footer in zip(files, footers, strict=True):
                yield from parquet.spans(file.name, footer, records)


def items(form: str, span: Span, wanted: Collection[str]) -> Iterator[Item]:
    """Yield what stands in a span; of tables only the wanted columns."""
    match form:
        case "jsonl":
            return jsonl.items(span)
        case "json":
            return arrays.items(span)
        case "folder":
            return folder.items(span)
        case "parquet":
            return parquet.items(span, wanted)
    raise ConfigError(f"format: '{form}' is unknown. Cut the source again.")


def _format_of(file: File) -> str:
    if file.folder:
        return "folder"
    suffix = PurePosixPath(stem(file.name)).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{file.name}: unknown kind of source. {_KNOWN} Or say its 'format'.")
    found = SUFFIXES[suffix]
    return "jsonl" if found == "json" and not arrays.holds_array(file.name) else found


def _check_columns(
    files: Sequence[File], footers: Sequence[parquet.Footer | None], rows: Rows
) -> None:
    """Check the first file against the configuration, and the others against the first."""
    known = [(file, footer) for file, footer in zip(files, footers, strict=True) if footer]
    if not known:
        return
    first, model = known[0]
    rows.check(model.columns, first.name)
    needed = rows.wanted() & model.columns
    for file, footer in known[1:]:
        missing = sorted(needed - footer.columns)
        if missing:
            raise DataError(
                f"{file.name}: has no column {', '.join(missing)}, but {first.name} has. Encode "
                "them apart."
            )
