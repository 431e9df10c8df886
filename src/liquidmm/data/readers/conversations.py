"""Conversations in the layouts that instruction data is published in, as records.

==============  ============================================================================
LLaVA           `conversations` of `from` and `value`, and `image`; so too Mini-Gemini
ShareGPT        the same without `image`
LMSYS-Chat-1M   `conversation` of `role` and `content`
==============  ============================================================================

Contract: words stay as published. A conversation is taken whole or refused: after an
optional system turn the user begins, and user and assistant alternate. Keys that are not named here
(`model`, `openai_moderation`) are ignored.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from liquidmm.data.records import (
    ChatRecord,
    ImageSource,
    Message,
    Role,
    parse_image,
    provenance,
)
from liquidmm.data.validation import describe, names, string
from liquidmm.errors import DataError, suggest
from liquidmm.prompts import IMAGE_PLACEHOLDER

SPEAKERS: Mapping[str, Role] = MappingProxyType(
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "chatgpt": "assistant",
        "bard": "assistant",
        "bing": "assistant",
    }
)
"""Who speaks, as published data sets name it -> as we do."""

_TURN_KEYS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"conversations": ("from", "value"), "conversation": ("role", "content")}
)
"""Key of the turns -> keys of speaker and words in a turn."""

_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def parse_conversation(obj: Mapping[str, Any], where: str, root: Path | str) -> ChatRecord:
    """Make the record of a published conversation.

    Args:
        obj: The parsed entry; it has `conversations` or `conversation`.
        where: `file:line` or `file[index]`, for messages and as the key of a record without one.
        root: Folder or URL that relative picture paths start from.

    Returns:
        The record.

    Raises:
        DataError: The conversation breaks its layout.
    """
    name = next(name for name in _TURN_KEYS if name in obj)
    messages = _messages(obj[name], name, where)
    images = _images(obj, where, root)
    return ChatRecord(
        key=_key(obj, where),
        messages=_placed(messages, len(images), where),
        images=images,
        **provenance(obj, where),
    )


def _key(obj: Mapping[str, Any], where: str) -> str:
    for name in ("key", "conversation_id", "id"):
        value = obj.get(name)
        if isinstance(value, int | float):
            return str(value)
        if value is not None and string(obj, name, where, empty=True):
            return str(value)
    return where


def _messages(value: object, name: str, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: '{name}' must be a list of turns (got {describe(value)}). "
            "Correct the entry or leave it out."
        )
    messages = tuple(
        _message(item, f"{where}: {name}[{n}]", *_TURN_KEYS[name]) for n, item in enumerate(value)
    )
    _check_order(messages, name, where)
    return messages


def _message(value: object, where: str, speaker_key: str, words_key: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: a turn must be an object (got {describe(value)}). "
            f"Give '{speaker_key}' and '{words_key}'."
        )
    if speaker_key not in value or words_key not in value:
        raise DataError(
            f"{where}: a turn with other keys ({names(value)}). "
            f"Give '{speaker_key}' and '{words_key}'."
        )
    speaker = string(value, speaker_key, where)
    if speaker not in SPEAKERS:
        raise DataError(f"{where}: unknown speaker '{speaker}'.{suggest(speaker, SPEAKERS)}")
    return Message(role=SPEAKERS[speaker], content=string(value, words_key, where))


def _check_order(messages: tuple[Message, ...], name: str, where: str) -> None:
    first = 1 if messages[0].role == "system" else 0
    if len(messages) > first and messages[first].role == "assistant":
        raise DataError(
            f"{where}: {name}[{first}] is the assistant's, and what it answers is missing. "
            "Cut the turn off or leave the entry out."
        )
    for place, (before, message) in enumerate(pairwise(messages), start=1):
        if message.role == "system":
            raise DataError(
                f"{where}: {name}[{place}] is a system turn behind the start. Leave the entry out."
            )
        if message.role == before.role:
            raise DataError(
                f"{where}: {name}[{place}] is the {message.role}'s second turn in a row. "
                "Join the two or leave the entry out."
            )
    if all(message.role != "assistant" for message in messages):
        raise DataError(
            f"{where}: '{name}' has no assistant turn, so nothing to learn. Leave the entry out."
        )


def _images(obj: Mapping[str, Any], where: str, root: Path | str) -> tuple[ImageSource, ...]:
    """Return what `image` or `images` names: a path, a file in a Parquet struct, or several."""
    for name in _OTHER_MEDIA:
        if obj.get(name) is not None:
            raise DataError(f"{where}: has '{name}', and only pictures are read. Leave it out.")
    given = [name for name in ("image", "images") if obj.get(name) is not None]
    if len(given) > 1:
        raise DataError(f"{where}: has both 'image' and 'images'. Leave one of them out.")
    if not given:
        return ()
    value = obj[given[0]]
    items = value if isinstance(value, list) else [value]
    return tuple(parse_image(item, given[0], where, root) for item in items)


def _placed(messages: tuple[Message, ...], images: int, where: str) -> tuple[Message, ...]:
    """Check that each picture has its place; a single one without stands before the first question.

    There LLaVA's own training puts a picture, wherever in the question it was written.
    """
    wanted = sum(message.content.count(IMAGE_PLACEHOLDER) for message in messages)
    if wanted and not images:
        raise DataError(
            f"{where}: says {IMAGE_PLACEHOLDER} and has no picture, so the word would stand for "
            "one. Name the picture in 'image', change the word, or leave the entry out."
        )
    if images == 1 and not wanted:
        first = next(place for place, message in enumerate(messages) if message.role == "user")
        shown = Message(role="user", content=f"{IMAGE_PLACEHOLDER}\n{messages[first].content}")
        return (*messages[:first], shown, *messages[first + 1 :])
    if images != wanted:
        raise DataError(
            f"{where}: {images} images for {wanted} {IMAGE_PLACEHOLDER} in the turns. "
            "Give one image per placeholder, in order."
        )
    return messages
