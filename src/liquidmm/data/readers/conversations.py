"""Conversations in the layouts of published instruction data: LLaVA, ShareGPT, LMSYS-Chat-1M.

Text is not changed. A conversation is accepted or rejected as a whole: after an optional system
turn, user and assistant turns must alternate, starting with the user. Other keys (`model`,
`openai_moderation`) are ignored.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from liquidmm.data.records import (
    ChatRecord,
    ImageSource,
    Message,
    Role,
    check_images,
    metadata,
    parse_image,
    parse_turns,
)
from liquidmm.data.validation import describe, names, string
from liquidmm.errors import DataError, suggest
from liquidmm.prompts import IMAGE_PLACEHOLDER

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
}
"""Speaker name in published datasets -> role."""

_TURN_KEYS: Mapping[str, tuple[str, str]] = {
    "conversations": ("from", "value"),
    "conversation": ("role", "content"),
}
"""Key of the turns -> keys of speaker and text in a turn."""

_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def parse_conversation(obj: Mapping[str, Any], where: str, root: Path | str) -> ChatRecord:
    """Parse a JSON object with `conversations` or `conversation`; see `parse_record`.

    Raises:
        DataError: The conversation does not follow its layout.
    """
    name = next(name for name in _TURN_KEYS if name in obj)
    speaker_key, text_key = _TURN_KEYS[name]

    def parse(value: object, where: str) -> Message:
        return _message(value, where, speaker_key, text_key)

    messages = parse_turns(obj[name], name, where, parse)
    _check_order(messages, name, where)
    images = _images(obj, where, root)
    return ChatRecord(
        key=_key(obj, where),
        messages=_place_images(messages, len(images), where),
        images=images,
        **metadata(obj, where),
    )


def _key(obj: Mapping[str, Any], where: str) -> str:
    for name in ("key", "conversation_id", "id"):
        value = obj.get(name)
        if isinstance(value, int | float):
            return str(value)
        if value is not None and string(obj, name, where, empty=True):
            return str(value)
    return where


def _message(value: object, where: str, speaker_key: str, text_key: str) -> Message:
    found = f"the keys {names(value)}" if isinstance(value, Mapping) else describe(value)
    if not isinstance(value, Mapping) or speaker_key not in value or text_key not in value:
        raise DataError(
            f"{where}: a turn must have '{speaker_key}' and '{text_key}' (got {found}). "
            "Correct the record."
        )
    speaker = string(value, speaker_key, where)
    if speaker not in _ROLES:
        raise DataError(f"{where}: unknown speaker '{speaker}'.{suggest(speaker, _ROLES)}")
    return Message(role=_ROLES[speaker], content=string(value, text_key, where))


def _check_order(messages: tuple[Message, ...], name: str, where: str) -> None:
    first = 1 if messages[0].role == "system" else 0
    if len(messages) > first and messages[first].role == "assistant":
        raise DataError(
            f"{where}: {name}[{first}]: the assistant answers without a question. Drop the turn or "
            "the record."
        )
    for index, (before, message) in enumerate(pairwise(messages), start=1):
        if message.role == "system":
            raise DataError(
                f"{where}: {name}[{index}]: a system turn is only allowed at the start. Drop the "
                "record."
            )
        if message.role == before.role:
            raise DataError(
                f"{where}: {name}[{index}]: two turns of the {message.role} in a row. Merge them "
                "or drop the record."
            )


def _images(obj: Mapping[str, Any], where: str, root: Path | str) -> tuple[ImageSource, ...]:
    """Return the content of `image` or `images`: one image or a list."""
    for name in _OTHER_MEDIA:
        if obj.get(name) is not None:
            raise DataError(
                f"{where}: has '{name}', but only images are supported. Drop the record."
            )
    given = [name for name in ("image", "images") if obj.get(name) is not None]
    if len(given) > 1:
        raise DataError(f"{where}: has both 'image' and 'images'. Drop one of them.")
    if not given:
        return ()
    value = obj[given[0]]
    items = value if isinstance(value, list) else [value]
    return tuple(parse_image(item, given[0], where, root) for item in items)


def _place_images(messages: tuple[Message, ...], images: int, where: str) -> tuple[Message, ...]:
    """Check that every image has a placeholder, and add the placeholder of a single image.

    The placeholder goes before the first question: LLaVA's training code moves an image there from
    any position in the question.
    """
    expected = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if expected and not images:
        raise DataError(
            f"{where}: the text contains {IMAGE_PLACEHOLDER}, which marks an image, but there "
            "is no 'image'. Add it, change the text, or drop the record."
        )
    if images == 1 and not expected:
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        content = f"{IMAGE_PLACEHOLDER}\n{messages[first].content}"
        message = Message(role="user", content=content)
        return (*messages[:first], message, *messages[first + 1 :])
    check_images(messages, images, where)
    return messages
