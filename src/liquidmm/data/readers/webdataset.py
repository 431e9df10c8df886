"""WebDataset: tar files in which the members of a sample are adjacent.

The key of a sample is the path up to the first dot in the file name; the rest names a field: `jpg`,
`txt`, `json`, `cls`, `seg.png`. The fields of a `.json` member become fields of the sample. Each
file is one range; memory use is one sample. Other members and hidden files and folders are skipped.
"""

import json
import re
import tarfile
from collections.abc import Collection, Iterator
from typing import Any

from liquidmm.data.readers.chunks import FileRange, RawRecord, rejected, unreadable
from liquidmm.data.readers.files import open_file, permanent_reason
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key, field
_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_CAPTIONS = ("txt", "caption")
_TEXTS = frozenset({*_CAPTIONS, "cls", "json"})
_OTHER_CONTENT = frozenset({"text", "messages", "conversations", "conversation"})


def read(file: FileRange, named: Collection[str]) -> Iterator[RawRecord]:
    """Yield the samples of a whole file; `named` are the fields that the run file names."""
    index = 0
    try:
        with open_file(file.file) as stream, _Tar.open(fileobj=stream, mode="r|") as tar:
            for key, members in _samples(tar):
                where = f"{file.file}:{key}".encode(errors="backslashreplace").decode()
                try:
                    yield RawRecord(where=where, line=index, value=_value(key, members, named))
                except DataError as error:
                    yield rejected(where, index, str(error))
                index += 1
    except (tarfile.TarError, OSError) as error:
        reason = permanent_reason(file.file, error)
        yield unreadable(f"{file.file}[{index}]", index, f"not readable as tar ({reason})")


class _Header(tarfile.TarInfo):
    """A header that raises an error if it is damaged, instead of ending the archive."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> "_Header":
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.ended = True
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if tar.ended:
                raise
            raise tarfile.ReadError("the file ends before the archive does") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        tar.ended = False
        return found


class _Tar(tarfile.TarFile):
    """An archive that must be complete; concatenated archives are read to the end."""

    tarinfo = _Header
    ignore_zeros = True
    ended = False
    """Whether the end marker was the last thing read."""


def _samples(tar: Any) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield the key and members of each sample, without truncated samples."""
    sample, members = "", list[tuple[str, bytes]]()
    try:
        for key, field, content in _members(tar):
            if members and key != sample:
                yield sample, members
                members = []
            sample = key
            members.append((field, content))
    except (tarfile.TarError, OSError):
        if members and tar.ended:  # the damage comes after a complete archive
            yield sample, members
        raise
    if members:
        yield sample, members


def _members(tar: Any) -> Iterator[tuple[str, str, bytes]]:
    """Yield the key, field and content of each member that is read."""
    while (member := tar.next()) is not None:
        tar.members = []  # otherwise tarfile keeps all members in memory
        name = _NAME.fullmatch(member.name)
        if name is None or not member.isfile():
            continue
        key, field = name[1], name[2].lower()
        last = f".{field.rpartition('.')[2]}"
        if last in IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES or field in _TEXTS:
            yield key, field, tar.extractfile(member).read()


def _value(key: str, members: list[tuple[str, bytes]], named: Collection[str]) -> dict[str, Any]:
    """Return the fields of a sample, with `image` and `captions` under these names."""
    if key != key.encode(errors="replace").decode():
        raise DataError("the member name is not UTF-8. Rename the member.")
    fields: dict[str, Any] = {}
    for field, content in members:
        if field in fields:
            raise DataError(f"two members '{field}'. Give each sample a unique key.")
        fields[field] = _decode(field, content)
    described = fields.get("json")
    value = {**(described if isinstance(described, dict) else {}), **fields, "key": key}
    if "image" not in named:
        value |= _image(fields, {*value, *named})
    if "captions" not in named:
        captions = _only(fields, _CAPTIONS, "captions", "captions")
        value |= captions
        if not captions and "cls" in fields:
            value.setdefault("caption", fields["cls"])
    return value


def _image(fields: dict[str, Any], present: Collection[str]) -> dict[str, Any]:
    """Return the only image, if any; a sample without an image needs other content in `present`."""
    image = _only(fields, _IMAGES, "image", "images")
    if not image and _OTHER_CONTENT.isdisjoint(present):
        for field in fields:
            if f".{field}" in UNSUPPORTED_SUFFIXES:
                raise DataError(f"unsupported image format '{field}'. Convert it to PNG or JPEG.")
        raise DataError(f"no image (members: {', '.join(fields)}). Drop the sample.")
    return image


def _only(fields: dict[str, Any], choices: Collection[str], name: str, what: str) -> dict[str, Any]:
    """Return the field that is one of `choices` under `name`, or an empty mapping."""
    found = [field for field in fields if field in choices]
    if len(found) > 1:
        raise DataError(f"two {what} ({', '.join(found)}). Select one with fields.{name}.")
    return {name: fields[found[0]]} if found else {}


def _decode(field: str, content: bytes) -> Any:
    if field not in _TEXTS:
        return content
    try:
        text = content.decode("utf-8-sig").strip()
        if field == "json":
            return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{field}' is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{field}' is not valid JSON ({error}). Correct it.") from error
    if field == "cls":
        return int(text) if text.isdecimal() else text
    return text
