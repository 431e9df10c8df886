"""The layouts of published datasets: which fields a record has and how it is parsed.

==============  ============================================================================
liquid          our own: `image` and `captions`, `messages` (and `images`), or `text`
llava           `conversations` of `from` and `value`, and `image`; also Mini-Gemini
sharegpt        the same without `image`
lmsys           `conversation` of `role` and `content`: LMSYS-Chat-1M
journeydb       `img_path`, `prompt` and `Task2.Caption`
imagefolder     `file_name`, and a caption: the metadata tables of Hugging Face's ImageFolder
dclm            `text`: DCLM-baseline
slimpajama      `text`, and its subset in `meta.redpajama_set_name`
starcoder       `content`; The Stack adds `max_stars_repo_licenses`
==============  ============================================================================

A named layout accepts only its own records; `auto` detects the layout of each record from its keys.

Sources: the dataset cards of JourneyDB/JourneyDB, mlfoundations/dclm-baseline-1.0,
cerebras/SlimPajama-627B, bigcode/starcoderdata, bigcode/the-stack, lmsys/lmsys-chat-1m and
liuhaotian/LLaVA-Instruct-150K, and public loaders of JourneyDB's annotation files
(`train_anno_realease_repath.jsonl`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from liquidmm.data.readers.conversations import parse_conversation
from liquidmm.data.records import Record, parse_record
from liquidmm.data.validation import lookup, names
from liquidmm.errors import DataError

FieldNames: TypeAlias = Mapping[str, tuple[str, ...]]
"""Our name of a field -> its names in a record; captions use all of them, other fields the first
that exists."""

_KNOWN = (
    "'conversations' with or without 'image' (LLaVA, ShareGPT), 'conversation' (LMSYS-Chat-1M), "
    "'messages' (and 'images'), 'image' and 'captions', 'text', 'content' (StarCoder), 'img_path' "
    "(JourneyDB)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Fields of the records of a dataset."""

    keys: tuple[str, ...]
    """Keys; every record has at least one of them."""
    parse: Callable[[Mapping[str, Any], str, Path | str], Record] = parse_record
    """Parser of a record whose fields have our names."""
    names: FieldNames = field(default_factory=dict)
    """Names of the fields."""


LAYOUTS: Mapping[str, Layout] = {
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
"""Name of a layout -> its definition."""

LAYOUT_BY_KEY: Mapping[str, str] = {
    "messages": "liquid",
    "conversations": "llava",
    "conversation": "lmsys",
    "image": "liquid",
    "text": "liquid",
    "img_path": "journeydb",
    "content": "starcoder",
}
"""Key of a record -> its layout; the first key that exists determines the layout."""

_OTHER_CAPTIONS = ("caption", "text_prompt")
_OTHER_CONTENT = frozenset({"image", "images", "messages", "conversations", "conversation"})


def parse_fields(
    obj: Mapping[str, Any],
    where: str,
    root: Path | str,
    layout: str = "auto",
    named: FieldNames | None = None,
) -> Record:
    """Parse a record of any layout.

    `layout` is one of `LAYOUTS`, or `auto`. `named` are names of fields in this source, which take
    precedence over those of the layout.

    Raises:
        DataError: The record does not match the named layout or any layout, or is malformed.
    """
    if not isinstance(obj, Mapping):
        return parse_record(obj, where, root)
    named = named or {}
    fields = rename_fields(obj, named)
    if layout == "auto":
        layout = next((name for key, name in LAYOUT_BY_KEY.items() if key in fields), "")
        if not layout:
            raise DataError(
                f"{where}: matches no known layout (its keys: {names(obj)}). Known: {_KNOWN}."
            )
    chosen = LAYOUTS[layout]
    if not any(key in fields for key in (*chosen.keys, *(chosen.names.keys() & named.keys()))):
        expected = "' or '".join(chosen.keys)
        raise DataError(
            f"{where}: expected '{expected}' for the layout '{layout}', got the keys {names(obj)}. "
            "Correct the record or the layout."
        )
    others = {name: here for name, here in chosen.names.items() if name not in named}
    return chosen.parse(rename_fields(fields, others), where, root)


def rename_fields(obj: Mapping[str, Any], named: FieldNames) -> Mapping[str, Any]:
    """Return a record with the named fields under our names.

    Other fields with these names are dropped. If `text` is named but no image or conversation, the
    fields of those are dropped as well. A dot in a name selects a nested field.
    """
    if not named:
        return obj
    dropped = _dropped_keys(named)
    result = {key: value for key, value in obj.items() if key not in dropped}
    for name, candidates in named.items():
        found = [value for candidate in candidates if (value := lookup(obj, candidate))]
        if found:
            result[name] = _convert(name, found)
    if "captions" in named and "image" in result:
        result.pop("text", None)  # otherwise it would replace missing captions
    if "messages" in named and _is_sharegpt(result.get("messages")):
        result["conversations"] = result.pop("messages")
    return result


def _dropped_keys(named: FieldNames) -> set[str]:
    dropped = {*named, *(_OTHER_CAPTIONS if "captions" in named else ())}
    if "text" in named and not dropped & {*_OTHER_CONTENT, "captions"}:
        dropped |= _OTHER_CONTENT
    return dropped


def _convert(name: str, found: list[Any]) -> Any:
    """Create the value of a field from the values found under its names."""
    if name == "captions" and len(found) > 1:
        return [item for value in found for item in (value if isinstance(value, list) else [value])]
    value = found[0]
    if name in ("key", "source", "split", "license"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return (" AND " if name == "license" else ", ").join(value)
        if isinstance(value, int):
            return str(value)
    return value


def _is_sharegpt(messages: Any) -> bool:
    """Whether turns have `from` and `value`."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and "from" in first
