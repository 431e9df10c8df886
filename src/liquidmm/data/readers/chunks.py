"""Parts of a source and what is found in them.

Contract: a part is a short list of spans of files; it is made before anything is read, travels to
another process as a pickle or as JSON, and says which entries it holds without holding any.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from liquidmm.data.readers.files import File, blame, is_compressed, open_file
from liquidmm.data.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """A stretch of one file or folder."""

    file: str
    """Path or URL."""
    start: int = 0
    """Where it begins: a byte of JSONL, CSV or a JSON array, a row of Parquet or a data set, a
    place in the sorted list of a folder."""
    stop: int | None = None
    """Where the next span begins; None: it goes on to the end."""
    first: int = 0
    """Number of the first entry: the line from 1, or the index from 0."""
    root: str = ""
    """Folder of pictures that keys start from, which `file` lies in."""
    split: str = ""
    """Split of a Hugging Face data set."""
    count: int | None = None
    """How many entries it holds, blank lines counted; None where only reading it could tell."""


def spans_of_lines(
    file: File, records: int, cut: Callable[[BinaryIO, str, int], Iterator[FileRange]]
) -> Iterator[FileRange]:
    """Cut a file of lines into spans.

    Args:
        file: The file; a compressed one is a span of its own, as is one that can't be read.
        records: Entries of a span.
        cut: Given the open file, its name and `records`, yields the spans.
    """
    found: list[FileRange] = []
    if not is_compressed(file.name):
        try:
            with open_file(file.name) as stream:
                found = list(cut(stream, file.name, records))
        except OSError as error:
            blame(file.name, error)  # what is wrong is said where it is read
    yield from found or [FileRange(file=file.name, first=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What becomes one shard: a file, a range of a large one, or several small ones."""

    name: str
    """Readable name: the file, and the lines or indices in it when it is a range."""
    format: str
    """How its files are stored, never `auto`."""
    ranges: tuple[FileRange, ...]
    """What it consists of, in order."""

    @property
    def count(self) -> int | None:
        """How many entries it holds, for a progress bar; None when that is not known yet."""
        counts = [span.count for span in self.ranges]
        return None if None in counts else sum(count for count in counts if count)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRecord:
    """One place of a source: a record, or the reason why there is none."""

    where: str
    """`file:line`, `file[index]` in a JSON array or a table, or the path of a picture."""
    record: Record | None
    """The record; None when it was refused."""
    problem: str = ""
    """The message when it was refused."""
    line: int = 0
    """The line from 1, or the index from 0, that `where` names; 0 in a folder."""
    broken: bool = False
    """Whether what follows in the file can't be read either: more than this one entry is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRecord:
    """One place of a file as a format finds it, before any field has been looked at."""

    where: str
    """As in `ParsedRecord`."""
    line: int
    """As in `ParsedRecord`."""
    value: Any = None
    """The mapping of fields, or whatever stands there instead."""
    problem: str = ""
    """Why there is nothing, when there is nothing."""
    broken: bool = False
    """As in `ParsedRecord`."""


def group_ranges(spans: Iterable[FileRange], records: int, form: str) -> Iterator[Chunk]:
    """Put neighbouring small spans together to parts of at most about `records` entries.

    Args:
        spans: All spans of a source in order, none larger than it should be.
        records: Entries in a part.
        form: The format of the source.

    Yields:
        The parts in order; a span whose size is unknown is a part of its own.
    """
    group: list[FileRange] = []
    held = 0
    for span in spans:
        if group and (span.count is None or held + span.count > records):
            yield _part(group, form)
            group, held = [], 0
        group.append(span)
        held += span.count or 0
        if span.count is None:
            yield _part(group, form)
            group, held = [], 0
    if group:
        yield _part(group, form)


def _part(spans: list[FileRange], form: str) -> Chunk:
    name = _name(spans[0], form)
    if len(spans) > 1:
        name += f" to {_name(spans[-1], form)}"
    return Chunk(name=name, format=form, ranges=tuple(spans))


def _name(span: FileRange, form: str) -> str:
    name = f"{span.file}:{span.split}" if span.split else span.file
    if not span.start and span.stop is None:
        return name
    stop = span.first + (span.count or 0)
    match form:
        case "jsonl":
            return f"{name}:{span.first}-{stop - 1}"
        case "csv":
            return f"{name}:{span.first}-"  # a row may take several lines
        case _:
            return f"{name}[{span.first}:{stop}]"
