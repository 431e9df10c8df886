"""The layouts that data sets are published in: which fields an entry has and how it is read.

==============  ============================================================================
liquid          our own: `image` and `captions`, `messages` (and `images`), or `text`
llava           `conversations` of `from` and `value`, and `image`; so too Mini-Gemini
sharegpt        the same without `image`
lmsys           `conversation` of `role` and `content`: LMSYS-Chat-1M
journeydb       `img_path`, `prompt` and `Task2.Caption`
imagefolder     `file_name`, and a caption: the metadata tables of Hugging Face's ImageFolder
dclm            `text`: DCLM-baseline
slimpajama      `text`, and its part in `meta.redpajama_set_name`
starcoder       `content`; The Stack adds `max_stars_repo_licenses`
==============  ============================================================================

Contract: a named layout takes nothing else; `auto` tells the layout of each entry by its keys. What
fits none is refused.

Sources: the dataset cards of JourneyDB/JourneyDB, mlfoundations/dclm-baseline-1.0,
cerebras/SlimPajama-627B, bigcode/starcoderdata, bigcode/the-stack, lmsys/lmsys-chat-1m and
liuhaotian/LLaVA-Instruct-150K, and public loaders of JourneyDB's annotation files
(`train_anno_realease_repath.jsonl`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from liquidmm.data.readers.conversations import parse_conversation
from liquidmm.data.records import Record, parse_record
from liquidmm.data.validation import lookup, names
from liquidmm.errors import DataError

Names: TypeAlias = Mapping[str, tuple[str, ...]]
Parse: TypeAlias = Callable[[Mapping[str, Any], str, Path | str], Record]

_KNOWN = (
    "'conversations' with or without 'image' (LLaVA, ShareGPT), 'conversation' (LMSYS-Chat-1M), "
    "'messages' (and 'images'), 'image' and 'captions', 'text', 'content' (StarCoder), 'img_path' "
    "(JourneyDB)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the entries of a data set are laid out."""

    keys: tuple[str, ...]
    """Every entry has one of these."""
    parse: Parse = parse_record
    """Makes the record of an entry in which the fields have our names."""
    names: Names = field(default_factory=dict)
    """Our name of a field -> its names here: of captions all, otherwise the first that is there."""


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "liquid": Layout(keys=("messages", "image", "text")),
        "llava": Layout(keys=("conversations",), parse=parse_conversation),
        "sharegpt": Layout(keys=("conversations",), parse=parse_conversation),
        "lmsys": Layout(keys=("conversation",), parse=parse_conversation),
        "journeydb": Layout(
            keys=("img_path",),
            names={"image": ("img_path",), "captions": ("Task2.Caption", "prompt")},
        ),
        "imagefolder": Layout(keys=("file_name",), names={"image": ("file_name",)}),
        "dclm": Layout(keys=("text",), names={"text": ("text",)}),
        "slimpajama": Layout(
            keys=("text",), names={"text": ("text",), "source": ("meta.redpajama_set_name",)}
        ),
        "starcoder": Layout(
            keys=("content",),
            names={
                "text": ("content",),
                "key": ("hexsha", "id"),
                "license": ("max_stars_repo_licenses",),
            },
        ),
    }
)
"""Name of a layout -> what it is."""

_CAPTIONS = ("caption", "text_prompt")
_SHOWN = frozenset({"image", "images", "messages", "conversations", "conversation"})
_PROVENANCE = frozenset({"key", "source", "license", "split"})

LAYOUT_BY_KEY: Mapping[str, str] = MappingProxyType(
    {
        "messages": "liquid",
        "conversations": "llava",
        "conversation": "lmsys",
        "image": "liquid",
        "text": "liquid",
        "img_path": "journeydb",
        "content": "starcoder",
    }
)
"""Key of an entry -> its layout; the first key that is there decides."""


def parse_entry(
    obj: Mapping[str, Any],
    where: str,
    root: Path | str,
    layout: str = "auto",
    given: Names = MappingProxyType({}),
) -> Record:
    """Make the record that one entry of a source describes.

    Args:
        obj: The parsed entry.
        where: `file:line` or `file[index]`, for messages and as the key of a record without one.
        root: Folder or URL that relative picture paths start from.
        layout: One of `LAYOUTS`, or `auto`.
        given: Our name of a field -> its names in this source, where they are not the layout's.

    Returns:
        The record.

    Raises:
        DataError: The entry fits no layout, or not the one it should, or breaks it.
    """
    if not isinstance(obj, Mapping):
        return parse_record(obj, where, root)
    entry = renamed(obj, given)
    if layout == "auto":
        layout = next((name for key, name in LAYOUT_BY_KEY.items() if key in entry), "")
        if not layout:
            raise DataError(f"{where}: fits no layout (its keys: {names(obj)}). Known: {_KNOWN}.")
    chosen = LAYOUTS[layout]
    if not any(key in entry for key in (*chosen.keys, *(chosen.names.keys() & given.keys()))):
        wanted = "' or '".join(chosen.keys)
        raise DataError(
            f"{where}: no '{wanted}' as the layout '{layout}' has it (its keys: {names(obj)}). "
            "Correct the entry or the layout."
        )
    others = {name: here for name, here in chosen.names.items() if name not in given}
    return chosen.parse(renamed(entry, others), where, root)


def renamed(obj: Mapping[str, Any], given: Names) -> Mapping[str, Any]:
    """Return an entry with some fields under our own names.

    What our names meant before is left out. Where `text` is given and nothing of a picture or a
    conversation is, those are left out too.

    Args:
        obj: The entry.
        given: Our name of a field -> its names in the entry, dots stepping into objects. Of
            captions all count, otherwise the first that is there.
    """
    if not given:
        return obj
    hidden = {*given, *(_CAPTIONS if "captions" in given else ())}
    if "text" in given and not hidden & {*_SHOWN, "captions"}:
        hidden |= _SHOWN
    result = {key: value for key, value in obj.items() if key not in hidden}
    for name, candidates in given.items():
        found = [value for value in (lookup(obj, one) for one in candidates) if value]
        if found:
            result[name] = _captions(found) if name == "captions" else found[0]
    for name in _PROVENANCE & given.keys() & result.keys():
        result[name] = _words(result[name], " AND " if name == "license" else ", ")
    if "captions" in given and "image" in result:
        result.pop("text", None)  # it would stand in for captions that are missing
    if "messages" in given and _has_speakers(result.get("messages")):
        result["conversations"] = result.pop("messages")
    return result


def _captions(found: list[Any]) -> Any:
    if len(found) == 1:
        return found[0]
    return [item for value in found for item in (value if isinstance(value, list) else [value])]


def _words(value: Any, between: str) -> Any:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return between.join(value)
    return str(value) if isinstance(value, int) else value


def _has_speakers(messages: Any) -> bool:
    """Whether turns are written as ShareGPT does, with `from` and `value`."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and "from" in first
