"""A folder of pictures with a `.txt` of captions beside each, one caption per line.

Contract: folders come in order of their path, the files of one in order of their name. `spans`
lists names only. Every picture is an entry, and so is what seems to belong to one and can't be
used: captions without a picture, a picture of a kind that is not read, a folder called like a
picture.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.files import File, blame, details, is_url, listing, open_file, suffix
from liquidmm.data.records import ImageSource
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES

_CAPTIONS = ".txt"


def spans(file: File, records: int) -> Iterator[FileRange]:
    """Cut a folder and what is below it into spans of at most `records` entries."""
    root = file.name
    for folder in folders(root):
        try:
            count = len(_members(folder))
        except OSError as error:
            blame(folder, error)
            yield FileRange(file=folder, root=root)  # what is wrong is said where it is read
            continue
        if count <= records:
            if count:
                yield FileRange(file=folder, root=root, count=count)
            continue
        for first in range(0, count, records):
            stop = min(first + records, count)
            yield FileRange(
                file=folder, root=root, start=first, stop=stop, first=first, count=stop - first
            )


def items(span: FileRange) -> Iterator[RawRecord]:
    """Yield the pictures of a span in our own layout."""
    try:
        # a whole folder is listed afresh, one that several spans share only once
        whole = span.stop is None
        members = _members(span.file) if whole else _shared(span.file, _stamp(span.file))
    except OSError as error:
        problem = f"{span.file}: can't be listed ({blame(span.file, error)}). Check the folder."
        yield RawRecord(where=span.file, line=0, problem=problem, broken=True)
        return
    for name in members[span.start : span.stop]:
        where = f"{span.file.rstrip('/')}/{name}"
        printable = where.encode(errors="backslashreplace").decode()
        try:
            yield RawRecord(where=printable, line=0, value=_value(where, span.root))
        except DataError as error:
            yield RawRecord(where=printable, line=0, problem=f"{printable}: {error}")


def stamps(root: str) -> Iterator[str]:
    """Yield a line for every file in a folder and below it that changes when the file does.

    Raises:
        OSError: A folder can't be read.
    """
    for folder in folders(root):
        for file in details(folder):
            yield f"{file.name.removeprefix(root)}\0{file.size}\0{file.stamp}\n"


def folders(root: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a folder and those below it; a link back to one above it is not followed."""
    real = root if is_url(root) else os.path.realpath(root)
    if real in above:
        return
    yield root
    try:
        inner = listing(root)[1]
    except OSError as error:
        blame(root, error)
        return
    for name in inner:
        if suffix(name) not in IMAGE_SUFFIXES:
            yield from folders(f"{root.rstrip('/')}/{name}", (*above, real))


def _members(folder: str) -> list[str]:
    """Return the names in a folder that are entries, sorted."""
    files, folders = listing(folder)
    known = IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES
    pictures = [name for name in (*files, *folders) if suffix(name) in known]
    stems = {name[: -len(suffix(name))] for name in pictures}
    lonely = [
        name
        for name in files
        if name.endswith(_CAPTIONS) and name.removesuffix(_CAPTIONS) not in stems
    ]
    return sorted(pictures + lonely)


@lru_cache(maxsize=4)
def _shared(folder: str, _stamp: int) -> list[str]:
    return _members(folder)


def _stamp(folder: str) -> int:
    return 0 if is_url(folder) else Path(folder).stat().st_mtime_ns


def _value(where: str, root: str) -> dict[str, object]:
    ending = suffix(where)
    if where != where.encode(errors="replace").decode():
        raise DataError("the name is not UTF-8. Rename the file.")
    if ending == _CAPTIONS:
        raise DataError("captions without a picture. Add the picture or remove the file.")
    if ending in UNSUPPORTED_SUFFIXES:
        raise DataError(f"pictures of this kind ('{ending}') are not read. Convert it.")
    if not is_url(where) and Path(where).is_dir():
        raise DataError("is a folder, not a picture; what is in it is not read. Rename it.")
    stem = where[: -len(ending)]
    picture: ImageSource = where if is_url(where) else Path(where)
    key = stem.removeprefix(root.rstrip("/")).lstrip("/")
    return {"key": key, "image": picture, "captions": _captions(stem + _CAPTIONS)}


def _captions(name: str) -> list[str]:
    short = PurePosixPath(name).name
    try:
        with open_file(name) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"no readable {short} ({blame(name, error)}). Write one caption per line there."
        ) from error
    captions = [line.strip() for line in text.splitlines() if line.strip()]
    if not captions:
        raise DataError(f"{short} is empty. Write a caption there.")
    return captions
