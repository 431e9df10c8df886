"""The three kinds of training record, and the parser of our own JSON layout.

Every record object is well formed: types are correct, no text is empty, and there are as many
images as placeholders. Images are opened only when they are encoded. `parse_record` ignores unknown
keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from liquidmm.data.validation import describe, names, string, strings
from liquidmm.errors import DataError, suggest
from liquidmm.prompts import IMAGE_PLACEHOLDER

ImageSource: TypeAlias = Path | str | bytes
"""The path, the URL or the content of an image file, as `image_tokenizer.images` opens it."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

_CAPTION_KEYS = ("captions", "caption", "text_prompt", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """The text; each `<image>` in it is a placeholder for the next image of the conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """The fields that all records have."""

    key: str
    """Key of the record, used in messages."""
    source: str = ""
    """Name of the record's dataset."""
    license: str = ""
    """SPDX identifier of the license, empty if unknown."""
    split: str = ""
    """Split of the dataset, such as `train`; empty if there are no splits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecord(_Record):
    """A document of plain text."""

    text: str
    """The document, not empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTextRecord(_Record):
    """An image with captions."""

    image: ImageSource
    captions: tuple[str, ...]
    """One or more non-empty captions; the first is the canonical one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRecord(_Record):
    """A conversation, with or without images."""

    messages: tuple[Message, ...]
    """The turns in order, with at least one from the assistant."""
    images: tuple[ImageSource, ...] = ()
    """One image per `<image>` in the messages, in order."""


Record: TypeAlias = TextRecord | ImageTextRecord | ChatRecord


def images_of(record: Record) -> tuple[ImageSource, ...]:
    """Return the images of a record, in order of appearance."""
    match record:
        case ImageTextRecord():
            return (record.image,)
        case ChatRecord():
            return record.images
        case _:
            return ()


def parse_image(value: object, name: str, where: str, root: Path | str) -> ImageSource:
    """Return the image that a field contains or refers to; relative paths start at `root`.

    Raises:
        DataError: The value is not a path, the content of a file, or `{bytes, path}` as in Hugging
            Face datasets; or it is empty.
    """
    if isinstance(value, Mapping) and ("path" in value or "bytes" in value):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, Path):
        return value
    if isinstance(value, bytes):
        if not value:
            raise DataError(f"{where}: '{name}' is empty (0 bytes). Drop the record.")
        return value
    path = string({name: value}, name, where)
    if "://" in path:
        return path
    if isinstance(root, str):
        return f"{root.rstrip('/')}/{path.removeprefix('./')}"
    return root / path


def parse_record(obj: Mapping[str, Any], where: str, root: Path | str) -> Record:
    """Check one JSON object and build the record it describes.

    The keys determine the kind: `messages` (with `images`) is a conversation; `image` with
    `captions`, `caption`, `text_prompt` or `text` is a captioned image; `text` alone is a document.
    `key`, `source`, `license` and `split` are optional. The content of a turn is a string, or a
    list of `{"type": "text", "text": ...}` and `{"type": "image"}`.

    Args:
        obj: The parsed object.
        where: `file:line` or `file[index]`, used in messages and as the default key.
        root: Folder or URL that image paths are relative to.

    Raises:
        DataError: A key is missing, or its value has the wrong type or is empty.
    """
    if not isinstance(obj, Mapping):
        raise DataError(f"{where}: not a JSON object (got {describe(obj)}). Use an object.")
    common = metadata(obj, where)
    common["key"] = string(obj, "key", where, empty=True) or where
    if "messages" in obj:
        messages = parse_turns(obj["messages"], "messages", where, _message)
        images = _images(obj, where, root)
        check_images(messages, len(images), where)
        return ChatRecord(messages=messages, images=images, **common)
    if "image" in obj:
        image = parse_image(obj["image"], "image", where, root)
        return ImageTextRecord(image=image, captions=_captions(obj, where), **common)
    if "text" in obj:
        return TextRecord(text=string(obj, "text", where), **common)
    raise DataError(
        f"{where}: not a record ({names(obj)}). "
        "Add 'image' and 'captions', 'messages' (and 'images'), or 'text'."
    )


def metadata(obj: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return `source`, `license` and `split` of an entry; missing ones are empty.

    Raises:
        DataError: One of them is not a string.
    """
    return {name: string(obj, name, where, empty=True) for name in ("source", "license", "split")}


def _captions(obj: Mapping[str, Any], where: str) -> tuple[str, ...]:
    name = next((name for name in _CAPTION_KEYS if name in obj), None)
    if name is None:
        raise DataError(
            f"{where}: 'image' without a caption. Add 'captions', 'caption', 'text_prompt' or "
            "'text'."
        )
    if isinstance(obj[name], str):
        return (string(obj, name, where),)
    captions = strings(obj[name], name, where)
    if not captions:
        raise DataError(f"{where}: '{name}' is empty. Add at least one caption.")
    return captions


def parse_turns(
    value: object, name: str, where: str, parse: Callable[[object, str], Message]
) -> tuple[Message, ...]:
    """Parse each turn of a list with `parse(turn, where)`.

    Raises:
        DataError: The value is not a list, or there is no assistant turn.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: '{name}' must be a list of turns (got {describe(value)}). "
            "Correct the record."
        )
    turns = tuple(parse(item, f"{where}: {name}[{n}]") for n, item in enumerate(value))
    if all(turn.role != "assistant" for turn in turns):
        raise DataError(
            f"{where}: '{name}' has no assistant turn, so there is nothing to train on. "
            "Drop the record."
        )
    return turns


def check_images(messages: tuple[Message, ...], images: int, where: str) -> None:
    """Raise a `DataError` unless there is one image per placeholder."""
    expected = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if images != expected:
        raise DataError(
            f"{where}: {images} images for {expected} {IMAGE_PLACEHOLDER} in the messages. "
            "Add one image per placeholder, in order."
        )


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: a turn must be an object (got {describe(value)}). Add 'role' and 'content'."
        )
    role = string(value, "role", where)
    if role not in ROLES:
        raise DataError(f"{where}: unknown role '{role}'.{suggest(role, ROLES)}")
    content = value.get("content")
    if isinstance(content, list):
        value = {"content": "\n".join(_content_part(part, where) for part in content)}
    return Message(role=cast(Role, role), content=string(value, "content", where))


def _content_part(value: object, where: str) -> str:
    """Return the text of one content part, in the format of transformers' chat templates."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "image":
        return IMAGE_PLACEHOLDER
    if kind != "text":
        raise DataError(
            f"{where}: a part of 'content' must be of type 'text' or 'image' (got "
            f"{describe(value)}). Correct the record."
        )
    return string(cast(Mapping[str, Any], value), "text", where)


def _images(obj: Mapping[str, Any], where: str, root: Path | str) -> tuple[ImageSource, ...]:
    items = obj.get("images", [])
    if not isinstance(items, list):
        raise DataError(
            f"{where}: 'images' must be a list of images (got {describe(items)}). "
            "Correct the record."
        )
    return tuple(parse_image(item, f"images[{n}]", where, root) for n, item in enumerate(items))
