"""WebDataset: tar files in which the members of one sample stand together.

Contract: a file is one span. The key of a sample is the path up to the first dot of the file name,
what follows that dot names a field: `jpg`, `txt`, `json`, `cls`, `seg.png`. `items` yields every
sample in order, with the fields of its `.json` as fields of its own. In memory is one sample.
Members of other kinds are passed over, and so are hidden files and folders.
"""

import json
import re
import tarfile
from collections.abc import Collection, Iterator
from typing import Any

from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.files import File, blame, open_content
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key, field
_TEXTS = frozenset({"txt", "caption", "cls", "json"})
_CAPTIONS = ("txt", "caption")
_OTHERS = frozenset({"text", "messages", "conversations", "conversation"})


def spans(file: File, _records: int) -> Iterator[FileRange]:
    """Take a file as a whole, however many samples it holds."""
    yield FileRange(file=file.name)


def items(span: FileRange, given: Collection[str]) -> Iterator[RawRecord]:
    """Yield the samples of a file.

    Args:
        span: A whole file.
        given: Our names of the fields that the run file names.
    """
    index = 0
    try:
        with open_content(span.file) as stream, _Tar.open(fileobj=stream, mode="r|") as tar:
            for key, members in _samples(tar):
                yield _item(key, members, span.file, index, given)
                index += 1
    except (tarfile.TarError, OSError) as error:
        where = f"{span.file}[{index}]"
        problem = (
            f"{where}: not readable as tar ({blame(span.file, error)}). From here on the file is "
            "lost; download it again."
        )
        yield RawRecord(where=where, line=index, problem=problem, broken=True)


class _Header(tarfile.TarInfo):
    """A header that is refused when it is damaged; tarfile takes it for the end of the archive."""

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
    """An archive that must be whole; one that others were appended to is read to the end."""

    tarinfo = _Header
    ignore_zeros = True
    ended = False
    """Whether the mark of the end was the last thing read."""


def _samples(tar: Any) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield key and members of each sample; the one that breaks off is not taken."""
    sample, members = "", list[tuple[str, bytes]]()
    try:
        for key, field, content in _members(tar):
            if members and key != sample:
                yield sample, members
                members = []
            sample = key
            members.append((field, content))
    except (tarfile.TarError, OSError):
        if members and tar.ended:  # what is broken lies behind a whole archive
            yield sample, members
        raise
    if members:
        yield sample, members


def _members(tar: Any) -> Iterator[tuple[str, str, bytes]]:
    """Yield key, field and content of the members that are read."""
    while (member := tar.next()) is not None:
        tar.members = []  # tarfile would keep them all
        name = _NAME.fullmatch(member.name)
        if name is None or not member.isfile():
            continue
        key, field = name[1], name[2].lower()
        last = f".{field.rpartition('.')[2]}"
        if last in IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES or field in _TEXTS:
            yield key, field, tar.extractfile(member).read()


def _item(
    key: str, members: list[tuple[str, bytes]], file: str, index: int, given: Collection[str]
) -> RawRecord:
    where = f"{file}:{key}".encode(errors="backslashreplace").decode()
    try:
        return RawRecord(where=where, line=index, value=_value(key, members, given))
    except DataError as error:
        return RawRecord(where=where, line=index, problem=f"{where}: {error}")


def _value(key: str, members: list[tuple[str, bytes]], given: Collection[str]) -> dict[str, Any]:
    if key != key.encode(errors="replace").decode():
        raise DataError("the name is not UTF-8. Rename the member.")
    fields: dict[str, Any] = {}
    for field, content in members:
        if field in fields:
            raise DataError(f"two members '{field}'. Give each sample a name of its own.")
        fields[field] = _content(field, content)
    described = fields.get("json")
    row = {**(described if isinstance(described, dict) else {}), **fields, "key": key}
    if "image" not in given:
        pictures = [field for field in fields if f".{field}" in IMAGE_SUFFIXES]
        row |= _only(pictures, fields, "image", "pictures")
        if not pictures and not _OTHERS & (row.keys() | given):
            raise DataError(_no_picture(fields))
    if "captions" not in given:
        captions = [field for field in fields if field in _CAPTIONS]
        row |= _only(captions, fields, "captions", "captions")
        if not captions and "cls" in fields:
            row.setdefault("caption", fields["cls"])
    return row


def _only(found: list[str], fields: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    if len(found) > 1:
        raise DataError(f"two {what} ({', '.join(found)}). Name one in fields.{name}.")
    return {name: fields[found[0]]} if found else {}


def _no_picture(fields: dict[str, Any]) -> str:
    for field in fields:
        if f".{field}" in UNSUPPORTED_SUFFIXES:
            return f"pictures of this kind ('{field}') are not read. Convert it."
    return f"no picture (its members: {', '.join(fields)}). Leave it out."


def _content(field: str, content: bytes) -> Any:
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
