"""The formats of sources: told by names, cut into spans, read as items.

Contract: a source has one format. Which one is said in the run file, or told by the names of its
files and by what its folder holds; a `.json` file is looked into, since it holds one array or
lines.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from liquidmm.data.readers import (
    arrays,
    folder,
    hugging_face,
    jsonl,
    parquet,
    tables,
    webdataset,
)
from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import File, blame, listing, matching, stem, suffix
from liquidmm.data.readers.schema import METADATA, RecordSchema
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".csv": "csv",
        ".tsv": "csv",
        ".parquet": "parquet",
        ".tar": "webdataset",
        ".tgz": "webdataset",
    }
)
"""Suffix of a file, before that of its compression -> format."""

_KNOWN = f"Give a folder, or files of these kinds: {', '.join(SUFFIXES)}."
_THREADS = 16
_CUT: Mapping[str, Callable[[File, int], Iterator[FileRange]]] = MappingProxyType(
    {
        "jsonl": jsonl.spans,
        "json": arrays.spans,
        "csv": tables.spans,
        "folder": folder.spans,
        "webdataset": webdataset.spans,
    }
)


def files_of(config: SourceConfig) -> tuple[str, list[File]]:
    """Return the format of a source, never `auto`, and its files or folders in order.

    A folder is a saved data set, pictures with captions, or files of one of the other formats.

    Raises:
        DataError: There is no such file, a file is of an unknown format, or two differ in theirs.
        ConfigError: The format that the configuration names does not fit.
    """
    if config.format == "huggingface":
        return config.format, [File(name=path, folder=True) for path in config.paths]
    form, files = "", list[File]()
    for file in (file for path in config.paths for file in matching(path)):
        one, inner = (_folder if file.folder else _file)(file, config.format)
        if form and one != form:
            raise DataError(
                f"{file.name}: is {one}, but {files[0].name} is {form}. Encode them apart."
            )
        form = one
        files += inner
    return form, files


def spans(
    form: str, files: Sequence[File], rows: RecordSchema, records: int
) -> Iterator[FileRange]:
    """Cut the files of a source into spans, in order.

    Raises:
        ConfigError: Fields that the configuration names are not there.
        DataError: Files differ in their columns, or a data set can't be loaded.
    """
    match form:
        case "parquet":
            footers = parquet.footers(files)
            found = zip(files, footers, strict=True)
            _check_columns({file.name: f.columns for file, f in found if f}, rows)
            for file, footer in zip(files, footers, strict=True):
                yield from parquet.spans(file.name, footer, records)
        case "huggingface":
            for file in files:
                _check_columns(hugging_face.columns(file.name, rows.config), rows)
                yield from hugging_face.spans(file.name, rows.config, records)
        case _:
            cut = _CUT[form]
            with ThreadPoolExecutor(_THREADS) as pool:
                for part in pool.map(lambda file: list(cut(file, records)), files):
                    yield from part


def items(form: str, span: FileRange, rows: RecordSchema) -> Iterator[RawRecord]:
    """Yield what stands in a span; of tables only the wanted columns."""
    match form:
        case "jsonl":
            return jsonl.items(span)
        case "json":
            return arrays.items(span)
        case "csv":
            return tables.items(span)
        case "folder":
            return folder.items(span)
        case "webdataset":
            return webdataset.items(span, rows.given)
        case "huggingface":
            return hugging_face.items(span, rows.config, rows.wanted)
        case _:
            return parquet.items(span, rows.wanted)


def _file(file: File, form: str) -> tuple[str, list[File]]:
    """Return the format of a file, as it is said or as it is told by the name."""
    if form == "folder":
        raise ConfigError(f"format: is 'folder', but {file.name} is a file.")
    if form != "auto":
        return form, [file]
    found = _told(file.name)
    if not found:
        raise DataError(f"{file.name}: unknown kind of source. {_KNOWN} Or say its 'format'.")
    return "jsonl" if found == "json" and not arrays.holds_array(file.name) else found, [file]


def _folder(file: File, form: str) -> tuple[str, list[File]]:
    """Return the format of a folder, and itself or the files in it."""
    names, folders = _listing(file.name)
    if form == "folder":
        return form, [file]
    if form == "auto":
        if hugging_face.is_saved(names):
            return "huggingface", [file]
        tables_of_pictures = _metadata(file.name, names, folders)
        if tables_of_pictures:
            return _file(tables_of_pictures[0], form)[0], tables_of_pictures
    found = _data(file.name, form)
    if not found and form != "auto":
        raise DataError(f"{file.name}: holds no files of the format '{form}'. Check the folder.")
    if not found:
        return "folder", [file]
    files = [inner for name in found for inner in matching(name)]
    return _file(files[0], form)[0], files


def _metadata(root: str, names: Sequence[str], folders: Sequence[str]) -> list[File]:
    """Return the tables that describe the pictures of a folder, as Hugging Face has them."""
    found = [f"{root}/{name}" for name in names if name in METADATA]
    for inner in folders:
        listed = _listing(f"{root}/{inner}")[0]
        found += [f"{root}/{inner}/{name}" for name in listed if name in METADATA]
    return [file for name in found for file in matching(name)]


def _data(root: str, form: str) -> list[str]:
    """Return the files of one format in a folder without pictures, or nothing.

    JSON beside another format is taken for a description of it.
    """
    found: dict[str, list[str]] = {}
    for inner in folder.folders(root):
        for name in _listing(inner)[0]:
            told = _told(name)
            if form == "auto" and suffix(name) in IMAGE_SUFFIXES:
                if not found:
                    return []
                one = next(iter(found.values()))[0]
                raise DataError(
                    f"{root}: holds {one} and pictures. Name the file, or say format = 'folder'."
                )
            if told and form in ("auto", told):
                found.setdefault(told, []).append(f"{inner}/{name}")
    if len(found) > 1:
        found.pop("json", None)
    if len(found) > 1:
        raise DataError(f"{root}: holds files of {' and '.join(found)}. Name one kind of them.")
    return next(iter(found.values()), [])


def _listing(name: str) -> tuple[list[str], list[str]]:
    try:
        return listing(name)
    except OSError as error:
        blame(name, error)
        return [], []  # what is wrong with it is said where it is read


def _told(name: str) -> str:
    return SUFFIXES.get(suffix(stem(name)), "")


def _check_columns(columns: Mapping[str, Collection[str]], rows: RecordSchema) -> None:
    """Check the first file against the configuration, and the others against the first."""
    first = next(iter(columns), "")
    if not first:
        return
    rows.check(columns[first], first)
    needed = rows.wanted.intersection(columns[first])
    for name, found in columns.items():
        missing = sorted(needed.difference(found))
        if missing:
            raise DataError(
                f"{name}: has no column {', '.join(missing)}, but {first} has. Encode them apart."
            )
