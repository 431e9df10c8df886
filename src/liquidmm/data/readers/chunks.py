"""Chunks of a source, and the raw and parsed records that are read from them.

A chunk lists ranges of files and contains no data, so it is created before anything is parsed and
can be sent to another process as a pickle or JSON.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from liquidmm.data.readers.files import File, is_compressed, open_raw, permanent_reason
from liquidmm.data.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """A range of one file or folder."""

    file: str
    """Path or URL."""
    start: int = 0
    """First position: a byte of JSONL, CSV or a JSON array, a row of Parquet or a Hugging Face
    dataset, an index into the sorted names of a folder."""
    stop: int | None = None
    """Position after the last one; None means the end of the file."""
    first: int = 0
    """Number of the first record: a line from 1, or an index from 0."""
    root: str = ""
    """Image folder that keys are relative to; `file` is inside it."""
    split: str = ""
    """Split of a Hugging Face dataset."""
    count: int | None = None
    """Number of records, including blank lines; None if it is only known after reading the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Input of one shard: a file, a range of a large file, or several small files."""

    name: str
    """Human-readable name: the file, and the lines or indices of a range."""
    format: str
    """Format of the files, never `auto`."""
    ranges: tuple[FileRange, ...]
    """Ranges in order."""

    @property
    def count(self) -> int | None:
        """Number of records, for a progress bar; None if unknown."""
        counts = [item.count for item in self.ranges]
        return None if None in counts else sum(count for count in counts if count)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a record is, and why it cannot be used."""

    where: str
    """`file:line`, `file[index]` in a JSON array or a table, or the path of an image."""
    line: int = 0
    """Line, starting at 1, or index, starting at 0, as in `where`; 0 in a folder."""
    problem: str = ""
    """Why it is rejected; empty if it is not."""
    rest_lost: bool = False
    """Whether the records after this one are unreadable too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRecord(_Place):
    """A record as its file stores it, before any field is checked."""

    value: Any = None
    """The mapping of fields, or any other value that the file contains instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRecord(_Place):
    """A checked record, or the reason why it was rejected."""

    record: Record | None
    """The record; None if it was rejected."""


def index_range(name: str, start: int, stop: int, *, split: str = "", root: str = "") -> FileRange:
    """Return the range of the rows or names from index `start` up to but excluding `stop`."""
    return FileRange(
        file=name, split=split, root=root, start=start, stop=stop, first=start, count=stop - start
    )


def rejected(where: str, line: int, problem: str, *, rest_lost: bool = False) -> RawRecord:
    """Return a record that cannot be read; its problem starts with `where`."""
    return RawRecord(where=where, line=line, problem=f"{where}: {problem}", rest_lost=rest_lost)


def unreadable(where: str, line: int, problem: str) -> RawRecord:
    """Return a record that represents the rest of a damaged file."""
    fix = "The rest of the file is lost; repair it or download it again."
    return rejected(where, line, f"{problem}. {fix}", rest_lost=True)


def cut_uncompressed(
    file: File, records: int, cut: Callable[[BinaryIO, str, int], Iterator[FileRange]]
) -> Iterator[FileRange]:
    """Divide a file of lines with `cut(stream, name, records)`.

    A file that is compressed or cannot be read becomes one range.
    """
    found: list[FileRange] = []
    if not is_compressed(file.name):
        try:
            with open_raw(file.name) as stream:
                found = list(cut(stream, file.name, records))
        except OSError as error:
            permanent_reason(file.name, error)  # reported when the file is read
    yield from found or [FileRange(file=file.name, first=1)]


def group_ranges(ranges: Iterable[FileRange], records: int, form: str) -> Iterator[Chunk]:
    """Join adjacent ranges into chunks of about `records`; keep those of unknown size separate."""
    group: list[FileRange] = []
    size = 0
    for item in ranges:
        is_alone = item.count is None or any(other.count is None for other in group[-1:])
        if group and (is_alone or size + (item.count or 0) > records):
            yield _chunk(group, form)
            group, size = [], 0
        group.append(item)
        size += item.count or 0
    if group:
        yield _chunk(group, form)


def _chunk(ranges: list[FileRange], form: str) -> Chunk:
    name = _name(ranges[0], form)
    if len(ranges) > 1:
        name += f" to {_name(ranges[-1], form)}"
    return Chunk(name=name, format=form, ranges=tuple(ranges))


def _name(item: FileRange, form: str) -> str:
    name = f"{item.file}:{item.split}" if item.split else item.file
    if not item.start and item.stop is None:
        return name
    stop = item.first + (item.count or 0)
    match form:
        case "jsonl":
            return f"{name}:{item.first}-{stop - 1}"
        case "csv":
            return f"{name}:{item.first}-"  # a row can span several lines
        case _:
            return f"{name}[{item.first}:{stop}]"
