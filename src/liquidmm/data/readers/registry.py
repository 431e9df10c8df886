"""The formats of sources: detecting the format, dividing files into ranges, reading ranges.

A source has one format. The run file names the format, or it is detected from the file names and
the content of a folder; a `.json` file is opened because it can contain an array or lines.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from liquidmm.data.readers import (
    folder,
    hugging_face,
    json_array,
    jsonl,
    parquet,
    tables,
    webdataset,
)
from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import (
    File,
    find_files,
    list_names,
    open_raw,
    permanent_reason,
    stem,
    suffix,
)
from liquidmm.data.readers.schema import METADATA, RecordSchema, field_names
from liquidmm.errors import ConfigError, DataError, one_line
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tgz": "webdataset",
}
"""File suffix, without the compression suffix -> format."""

_THREADS = 16
_CUT: Mapping[str, Callable[[File, int], Iterator[FileRange]]] = {
    "jsonl": jsonl.cut,
    "json": json_array.cut,
    "csv": tables.cut,
    "folder": folder.cut,
    "webdataset": lambda file, _: iter((FileRange(file=file.name),)),
}
_HASHED_BYTES = 2**28
"""Maximum size of a source whose digest is computed from the content."""
_BLOCK = 2**20
_CHECKED = 100
"""Records at the start, middle and end of a source whose fields are checked."""


def files_of(config: SourceConfig) -> tuple[str, list[File]]:
    """Return the format of a source, never `auto`, and its files or folders in order.

    Raises:
        DataError: A file does not exist, its format is unknown, or two formats are mixed.
        ConfigError: The named format does not fit the source.
    """
    if config.format == "huggingface":
        return config.format, [File(name=path, is_folder=True) for path in config.paths]
    form, files = "", list[File]()
    for file in (file for path in config.paths for file in find_files(path)):
        detect = _detect_folder if file.is_folder else _detect_file
        detected, inner = detect(file, config.format)
        if form and detected != form:
            raise DataError(
                f"{file.name}: the format is {detected}, but {files[0].name} is {form}. "
                "Encode them separately."
            )
        form = detected
        files += inner
    return form, files


def cut(
    form: str, files: Sequence[File], schema: RecordSchema, records: int
) -> Iterator[FileRange]:
    """Divide the files of a source into ranges, in order.

    Raises:
        ConfigError: A field that the run file names does not exist.
        DataError: Files have different columns, or a dataset cannot be loaded.
    """
    match form:
        case "parquet":
            with ThreadPoolExecutor(_THREADS) as pool:
                footers = list(pool.map(parquet.read_footer, files))
            found = list(zip(files, footers, strict=True))
            _check_columns({file.name: footer.columns for file, footer in found if footer}, schema)
            for file, footer in found:
                yield from parquet.cut(file.name, footer, records)
        case "huggingface":
            for file in files:
                _check_columns(hugging_face.column_names(file.name, schema.config), schema)
                yield from hugging_face.cut(file.name, schema.config, records)
        case _:
            with ThreadPoolExecutor(_THREADS) as pool:
                for ranges in pool.map(lambda file: list(_CUT[form](file, records)), files):
                    yield from ranges


def read(form: str, item: FileRange, schema: RecordSchema) -> Iterator[RawRecord]:
    """Yield the records of a range."""
    match form:
        case "jsonl":
            return jsonl.read(item)
        case "json":
            return json_array.read(item)
        case "csv":
            return tables.read(item)
        case "folder":
            return folder.read(item)
        case "webdataset":
            return webdataset.read(item, schema.named)
        case "huggingface":
            return hugging_face.read(item, schema.config, schema.columns)
        case _:
            return parquet.read(item, schema.columns)


def check_fields(form: str, ranges: Sequence[FileRange], schema: RecordSchema) -> None:
    """Check the fields of some records at the start, in the middle and at the end of a source.

    Tables were already checked when they were divided. Tar files and folders are read only if the
    run file names fields or a layout, and then only the first tar file.
    """
    is_default = not schema.named and schema.config.layout == "auto"
    if form in ("parquet", "huggingface") or (form in ("webdataset", "folder") and is_default):
        return
    chosen = [ranges[0], ranges[len(ranges) // 2], ranges[-1]]
    if form == "webdataset":
        chosen = chosen[:1]
    found: set[str] = set()
    for item in chosen:
        for raw in islice(read(form, item, schema), _CHECKED):
            found |= field_names(raw.value)
    if found:
        schema.check_fields(found, ", ".join(schema.config.paths))


def digest(config: SourceConfig) -> str:
    """Return a hash that changes when the files of a source change, as 16 hex digits.

    Sources of up to 256 MiB are hashed by content, so a copy has the same digest; larger sources
    and image folders are hashed by names, sizes and times. The configuration and images that a file
    refers to are not included.

    Raises:
        DataError: A file does not exist or cannot be read.
    """
    form, files = files_of(config)
    total = hashlib.sha256()
    by_content = sum(file.size for file in files) <= _HASHED_BYTES
    try:
        for file in files:
            for block in _hashed(file, config, form, by_content=by_content):
                total.update(block)
    except OSError as error:
        raise DataError(
            f"{', '.join(config.paths)}: cannot be read ({one_line(error)}). Check the files."
        ) from error
    return total.hexdigest()[:16]


def _hashed(file: File, config: SourceConfig, form: str, *, by_content: bool) -> Iterator[bytes]:
    """Yield the input of the digest of a file or folder."""
    if form == "huggingface" and not Path(file.name).is_dir():
        yield hugging_face.fingerprints(file.name, config).encode()
    elif file.is_folder:
        for line in folder.versions(file.name):
            yield line.encode(errors="surrogateescape")
    elif by_content:
        with open_raw(file.name) as stream:
            while block := stream.read(_BLOCK):
                yield block
    else:
        line = f"{file.name}\0{file.size}\0{file.version}\n"
        yield line.encode(errors="surrogateescape")


def _detect_file(file: File, form: str) -> tuple[str, list[File]]:
    """Return the format of a file and the file, given the format in the run file."""
    if form == "folder":
        raise ConfigError(f"format: 'folder' needs a folder, got the file {file.name}.")
    if form != "auto":
        return form, [file]
    found = _format_of(file.name)
    if not found:
        raise DataError(
            f"{file.name}: unknown format. Use a folder or files with one of these suffixes: "
            f"{', '.join(SUFFIXES)}; or set 'format'."
        )
    return "jsonl" if found == "json" and not json_array.is_array(file.name) else found, [file]


def _detect_folder(file: File, form: str) -> tuple[str, list[File]]:
    """Return the format of a folder, and the folder or the files in it."""
    names, folders = _list_names(file.name)
    if form == "folder":
        return form, [file]
    if form == "auto":
        if hugging_face.is_saved(names):
            return "huggingface", [file]
        metadata = _metadata_files(file.name, names, folders)
        if metadata:
            return _detect_file(metadata[0], form)[0], metadata
    found = _data_files(file.name, form)
    if not found and form != "auto":
        raise DataError(f"{file.name}: contains no files of the format '{form}'. Check the folder.")
    if not found:
        return "folder", [file]
    files = [inner for name in found for inner in find_files(name)]
    return _detect_file(files[0], form)[0], files


def _metadata_files(root: str, names: Sequence[str], folders: Sequence[str]) -> list[File]:
    """Return the tables in a folder and its subfolders that describe images."""
    listed = {root: names}
    listed |= {path: _list_names(path)[0] for path in (f"{root}/{inner}" for inner in folders)}
    found = [f"{path}/{name}" for path in listed for name in listed[path] if name in METADATA]
    return [file for name in found for file in find_files(name)]


def _data_files(root: str, form: str) -> list[str]:
    """Return the files of one format in a folder, or an empty list for a folder of images.

    JSON files next to files of another format are assumed to describe them.
    """
    found: dict[str, list[str]] = {}
    for inner in folder.folders(root):
        for name in _list_names(inner)[0]:
            detected = _format_of(name)
            if form == "auto" and suffix(name) in IMAGE_SUFFIXES:
                if not found:
                    return []
                other = next(iter(found.values()))[0]
                raise DataError(
                    f"{root}: contains {other} and images. Use the path of the file, or set "
                    "format = 'folder'."
                )
            if detected and form in ("auto", detected):
                found.setdefault(detected, []).append(f"{inner}/{name}")
    if len(found) > 1:
        found.pop("json", None)
    if len(found) > 1:
        raise DataError(
            f"{root}: contains files of the formats {' and '.join(found)}. Set 'format' to one."
        )
    return next(iter(found.values()), [])


def _list_names(name: str) -> tuple[list[str], list[str]]:
    try:
        return list_names(name)
    except OSError as error:
        permanent_reason(name, error)
        return [], []  # the error is reported when the folder is read


def _format_of(name: str) -> str:
    return SUFFIXES.get(suffix(stem(name)), "")


def _check_columns(columns: Mapping[str, Collection[str]], schema: RecordSchema) -> None:
    """Check the first file against the run file, and the others against the first."""
    first = next(iter(columns), "")
    if not first:
        return
    schema.check_fields(columns[first], first)
    needed = schema.columns.intersection(columns[first])
    for name, found in columns.items():
        missing = sorted(needed.difference(found))
        if missing:
            raise DataError(
                f"{name}: has no column {', '.join(missing)}, but {first} has. Encode them "
                "separately."
            )
