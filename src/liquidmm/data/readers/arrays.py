"""A JSON file that holds one array, as LLaVA's and ShareGPT's conversations come.

Contract: `spans` parses the file once to find where items begin, and `items` reads a span from
there. What can't be parsed ends the array: the last span runs into it and says so.
"""

import codecs
from collections.abc import Iterator

from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.files import File, blame, is_compressed, open_content
from liquidmm.data.readers.json_array import array_items
from liquidmm.errors import DataError


def holds_array(name: str) -> bool:
    """Whether a JSON file begins as an array does, and not as lines of objects."""
    try:
        with open_content(name) as stream:
            start = stream.read(4096)
    except OSError as error:
        blame(name, error)
        return False  # what is wrong with it is said where it is read
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def spans(file: File, records: int) -> Iterator[FileRange]:
    """Cut a file into spans of `records` items."""
    if is_compressed(file.name):
        yield FileRange(file=file.name)
        return
    start = first = index = 0
    whole = False
    try:
        with open_content(file.name) as stream:
            for place, _ in array_items(stream, file.name):
                if index == first + records:
                    yield FileRange(
                        file=file.name, start=start, stop=place, first=first, count=records
                    )
                    start, first = place, index
                index += 1
        whole = True
    except (DataError, OSError) as error:
        blame(file.name, error)  # the last span meets it again
    if index > first or not whole:
        count = index - first if whole else None
        yield FileRange(file=file.name, start=start, first=first, count=count)


def items(span: FileRange) -> Iterator[RawRecord]:
    """Yield the items of a span."""
    index = span.first
    try:
        with open_content(span.file) as stream:
            if span.start:
                stream.seek(span.start)
            found = array_items(stream, span.file, first=span.first, start=span.start)
            for place, value in found:
                if span.stop is not None and place >= span.stop:
                    return
                yield RawRecord(where=f"{span.file}[{index}]", line=index, value=value)
                index += 1
    except (DataError, OSError) as error:
        where = f"{span.file}[{index}]"
        problem = str(error)
        if isinstance(error, OSError):
            problem = f"{where}: can't be read ({blame(span.file, error)}). Check the file."
        yield RawRecord(where=where, line=index, problem=problem, broken=True)
