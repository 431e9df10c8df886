"""The three kinds of training record and the check of one JSON object in our own layout.

Contract: a record that exists is well formed (types, no empty text, as many pictures as
placeholders). Whether a picture can be opened is found out when it is encoded. Keys that
`parse_record` does not name are ignored, so that a data set may carry more (concept, style) than
training reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from liquidmm.data.validation import describe, names, string, strings
from liquidmm.errors import DataError, suggest
from liquidmm.prompts import IMAGE_PLACEHOLDER

ImageSource: TypeAlias = Path | str | bytes
"""A file, the URL of one, or its content; `image_tokenizer.images.open_image` opens all three."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

_CAPTION_KEYS = ("captions", "caption", "text_prompt", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """Who speaks."""
    content: str
    """What is said; each `<image>` in it stands for the next picture of the conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecord:
    """A document of plain text."""

    key: str
    """Name of the record, used in messages."""
    text: str
    """The document, not empty."""
    source: str = ""
    """Data set the record comes from."""
    license: str = ""
    """SPDX name of the licence, empty when unknown."""
    split: str = ""
    """Part of the data set, such as `train`; empty when it is not divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTextRecord:
    """A picture and what it shows."""

    key: str
    """Name of the record, used in messages."""
    image: ImageSource
    """Path or URL of the picture, or its file content."""
    captions: tuple[str, ...]
    """One or more captions, none empty; the first is the canonical one."""
    source: str = ""
    """Data set the record comes from."""
    license: str = ""
    """SPDX name of the licence, empty when unknown."""
    split: str = ""
    """Part of the data set, such as `train`; empty when it is not divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRecord:
    """A conversation, with or without pictures."""

    key: str
    """Name of the record, used in messages."""
    messages: tuple[Message, ...]
    """The turns in order; at least one is the assistant's."""
    images: tuple[ImageSource, ...] = ()
    """One picture per `<image>` in the messages, in order."""
    source: str = ""
    """Data set the record comes from."""
    license: str = ""
    """SPDX name of the licence, empty when unknown."""
    split: str = ""
    """Part of the data set, such as `train`; empty when it is not divided."""


Record: TypeAlias = TextRecord | ImageTextRecord | ChatRecord


def images_of(record: Record) -> tuple[ImageSource, ...]:
    """Return the pictures of a record in the order in which they are shown."""
    match record:
        case ImageTextRecord():
            return (record.image,)
        case ChatRecord():
            return record.images
        case _:
            return ()


def parse_image(value: object, name: str, where: str, root: Path | str) -> ImageSource:
    """Return the picture that a field names or holds.

    Args:
        value: A path, the content of a file, or `{bytes, path}` as Hugging Face stores it.
        name: The field, for messages.
        where: Start of the message, such as `file:line`.
        root: Folder or URL that a relative path starts from.

    Raises:
        DataError: It is none of these, or empty.
    """
    if isinstance(value, Mapping) and ("path" in value or "bytes" in value):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, Path):
        return value
    if isinstance(value, bytes):
        if not value:
            raise DataError(f"{where}: '{name}' is empty (0 bytes). Leave the record out.")
        return value
    path = string({name: value}, name, where)
    if "://" in path:
        return path
    if isinstance(root, str):
        return f"{root.rstrip('/')}/{path.removeprefix('./')}"
    return root / path


def parse_record(obj: Mapping[str, Any], where: str, root: Path | str) -> Record:
    """Check one JSON object and make the record it describes.

    The keys decide the kind: `messages` (with `images`) is a conversation, `image` with `captions`,
    `caption`, `text_prompt` or `text` a captioned picture, `text` alone a document. `key`,
    `source`, `license` and `split` are optional. The content of a turn is a string, or a list of
    `{"type": "text", "text": ...}` and `{"type": "image"}`.

    Args:
        obj: The parsed object.
        where: `file:line` or `file[index]`, for messages and as the key of a record without one.
        root: Folder or URL that relative picture paths start from.

    Returns:
        The record.

    Raises:
        DataError: A key is missing or its value has the wrong type or is empty.
    """
    if not isinstance(obj, Mapping):
        raise DataError(f"{where}: not a JSON object (got {describe(obj)}). Write an object there.")
    common = provenance(obj, where)
    key = string(obj, "key", where, empty=True) or where
    if "messages" in obj:
        messages = _messages(obj["messages"], where)
        images = _images(obj, messages, where, root)
        return ChatRecord(key=key, messages=messages, images=images, **common)
    if "image" in obj:
        image = parse_image(obj["image"], "image", where, root)
        return ImageTextRecord(key=key, image=image, captions=_captions(obj, where), **common)
    if "text" in obj:
        return TextRecord(key=key, text=string(obj, "text", where), **common)
    raise DataError(
        f"{where}: not a record ({names(obj)}). "
        "Give 'image' and 'captions', 'messages' (and 'images'), or 'text'."
    )


def provenance(obj: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return `source`, `license` and `split` of an entry, empty where it has none.

    Raises:
        DataError: One of them is no string.
    """
    return {name: string(obj, name, where, empty=True) for name in ("source", "license", "split")}


def _captions(obj: Mapping[str, Any], where: str) -> tuple[str, ...]:
    for name in _CAPTION_KEYS:
        if name not in obj:
            continue
        captions = (
            (string(obj, name, where),)
            if isinstance(obj[name], str)
            else strings(obj[name], name, where)
        )
        if captions:
            return captions
        raise DataError(f"{where}: '{name}' is empty. Give at least one caption.")
    raise DataError(
        f"{where}: 'image' without a caption. Add 'captions', 'caption', 'text_prompt' or 'text'."
    )


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: 'messages' must be a list of turns (got {describe(value)}). "
            "Correct the record."
        )
    messages = tuple(_message(item, f"{where}: messages[{n}]") for n, item in enumerate(value))
    if all(message.role != "assistant" for message in messages):
        raise DataError(
            f"{where}: 'messages' has no assistant turn, so nothing to learn. Leave the record out."
        )
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: a turn must be an object (got {describe(value)}). Give 'role' and 'content'."
        )
    role = string(value, "role", where)
    if role not in ROLES:
        raise DataError(f"{where}: unknown role '{role}'.{suggest(role, ROLES)}")
    content = value.get("content")
    if isinstance(content, list):
        value = {"content": "\n".join(_piece(piece, where) for piece in content)}
    return Message(role=role, content=string(value, "content", where))  # type: ignore[arg-type]


def _piece(value: object, where: str) -> str:
    """Return what stands for one piece of a turn, as chat templates of transformers have them."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "image":
        return IMAGE_PLACEHOLDER
    if kind != "text":
        raise DataError(
            f"{where}: a piece of 'content' must be of type 'text' or 'image' (got "
            f"{describe(value)}). Correct the record."
        )
    return string(cast(Mapping[str, Any], value), "text", where)


def _images(
    obj: Mapping[str, Any], messages: tuple[Message, ...], where: str, root: Path | str
) -> tuple[ImageSource, ...]:
    items = obj.get("images", [])
    if not isinstance(items, list):
        raise DataError(
            f"{where}: 'images' must be a list of pictures (got {describe(items)}). "
            "Correct the record."
        )
    images = tuple(parse_image(item, f"images[{n}]", where, root) for n, item in enumerate(items))
    wanted = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if len(images) != wanted:
        raise DataError(
            f"{where}: {len(images)} images for {wanted} {IMAGE_PLACEHOLDER} in the messages. "
            "Give one image per placeholder, in order."
        )
    return images
