"""A folder of images, each with a `.txt` file of captions, one caption per line.

Folders are sorted by path, and the images in a folder by name. A file that seems to belong to a
record but cannot be used is rejected: captions without an image, an unsupported image format, or a
folder named like an image.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from liquidmm.data.readers.chunks import FileRange, RawRecord, index_range, rejected
from liquidmm.data.readers.files import (
    File,
    is_url,
    list_files,
    list_names,
    open_raw,
    permanent_reason,
    suffix,
)
from liquidmm.data.records import ImageSource
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES

_CAPTIONS = ".txt"


def cut(file: File, records: int) -> Iterator[FileRange]:
    """Divide a folder and its subfolders into ranges of at most `records` images."""
    root = file.name
    for folder in folders(root):
        try:
            count = len(_record_names(folder))
        except OSError as error:
            permanent_reason(folder, error)
            yield FileRange(file=folder, root=root)  # the error is reported when the folder is read
            continue
        if count <= records:
            if count:
                yield FileRange(file=folder, root=root, count=count)
            continue
        for first in range(0, count, records):
            yield index_range(folder, first, min(first + records, count), root=root)


def read(images: FileRange) -> Iterator[RawRecord]:
    """Yield the images of a range with their keys and captions."""
    try:
        # a folder in one range is listed again; a folder in several ranges is listed once
        if images.stop is None:
            names = _record_names(images.file)
        else:
            modified = 0 if is_url(images.file) else Path(images.file).stat().st_mtime_ns
            names = _cached_record_names(images.file, modified)
    except OSError as error:
        reason = permanent_reason(images.file, error)
        problem = f"cannot be listed ({reason}). Check the folder."
        yield rejected(images.file, 0, problem, rest_lost=True)
        return
    for name in names[images.start : images.stop]:
        path = f"{images.file.rstrip('/')}/{name}"
        where = path.encode(errors="backslashreplace").decode()
        try:
            yield RawRecord(where=where, line=0, value=_value(path, images.root))
        except DataError as error:
            yield rejected(where, 0, str(error))


def versions(root: str) -> Iterator[str]:
    """Yield a line for every file below a folder; the line changes when the file changes."""
    for folder in folders(root):
        for file in list_files(folder):
            yield f"{file.name.removeprefix(root)}\0{file.size}\0{file.version}\n"


def folders(root: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a folder and its subfolders; a link to a folder in `above` is not followed."""
    real = root if is_url(root) else os.path.realpath(root)
    if real in above:
        return
    yield root
    try:
        inner = list_names(root)[1]
    except OSError as error:
        permanent_reason(root, error)
        return
    for name in inner:
        if suffix(name) not in IMAGE_SUFFIXES:
            yield from folders(f"{root.rstrip('/')}/{name}", (*above, real))


def _record_names(folder: str) -> list[str]:
    """Return the sorted names of images, and of captions without an image, in a folder."""
    files, inner = list_names(folder)
    known = IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES
    images = [name for name in (*files, *inner) if suffix(name) in known]
    stems = {name[: -len(suffix(name))] for name in images}
    captions = [name for name in files if name.endswith(_CAPTIONS)]
    return sorted(images + [name for name in captions if name.removesuffix(_CAPTIONS) not in stems])


@lru_cache(maxsize=4)
def _cached_record_names(folder: str, _modified: int) -> list[str]:
    return _record_names(folder)


def _value(path: str, root: str) -> dict[str, object]:
    ending = suffix(path)
    if path != path.encode(errors="replace").decode():
        raise DataError("the file name is not UTF-8. Rename the file.")
    if ending == _CAPTIONS:
        raise DataError("captions without an image. Add the image or remove the file.")
    if ending in UNSUPPORTED_SUFFIXES:
        raise DataError(f"unsupported image format '{ending}'. Convert it to PNG or JPEG.")
    if not is_url(path) and Path(path).is_dir():
        raise DataError("is a folder, not an image, and is not read. Rename it.")
    stem = path[: -len(ending)]
    image: ImageSource = path if is_url(path) else Path(path)
    key = stem.removeprefix(root.rstrip("/")).lstrip("/")
    return {"key": key, "image": image, "captions": _captions(stem + _CAPTIONS)}


def _captions(path: str) -> list[str]:
    name = PurePosixPath(path).name
    try:
        with open_raw(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = permanent_reason(path, error)
        raise DataError(
            f"cannot read {name} ({reason}). Write one caption per line to it."
        ) from error
    captions = [line.strip() for line in text.splitlines() if line.strip()]
    if not captions:
        raise DataError(f"{name} is empty. Write one caption per line to it.")
    return captions
