"""The fields of a source: parsing of raw records.

Null counts as a missing field. A record that cannot be used is rejected with a reason; if the run
file names a field that the source does not have, this raises `ConfigError`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from liquidmm.data.readers.chunks import ParsedRecord, RawRecord
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import is_url, open_raw, parent
from liquidmm.data.readers.layouts import LAYOUT_BY_KEY, LAYOUTS, parse_fields
from liquidmm.errors import ConfigError, DataError, one_line, suggest

_COMMON_FIELDS = frozenset(
    (
        *("key", "id", "conversation_id", "source", "license", "split"),
        *("image", "captions", "caption", "text_prompt", "text"),
        *("messages", "images", "conversations", "conversation"),
        *("video", "videos", "audio", "audios"),
    )
)
"""Fields that any layout reads or rejects under our name."""

METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Tables that describe the images in and below their folder, as in ImageFolder."""

_CONTENT = frozenset({"image", "text", "messages"})


class RecordSchema:
    """Parses the records of one file of a source."""

    def __init__(self, config: SourceConfig, file: str) -> None:
        """Create the schema of a file; files named in `METADATA` have the layout `imagefolder`."""
        self.config = config
        self.named = config.fields.given()
        self._layout: str = config.layout
        if config.layout == "auto" and PurePosixPath(file).name in METADATA:
            self._layout = "imagefolder"
        self._classes = _read_classes(config.classes)
        root = config.image_root
        self._image_root = parent(file) if root is None else root if is_url(root) else Path(root)

    def parse(self, raw: RawRecord) -> ParsedRecord | None:
        """Return the parsed or rejected record, or None if its split is not selected."""
        problem, value = raw.problem, raw.value
        if problem:
            return _rejected(raw, problem)
        if isinstance(value, Mapping):
            value = {name: item for name, item in value.items() if item is not None}
            self._name_classes(value)
        try:
            record = parse_fields(value, raw.where, self._image_root, self._layout, self.named)
        except DataError as error:
            return _rejected(raw, str(error))
        record = replace(
            record,
            source=record.source or self.config.name,
            license=record.license or self.config.license,
            split=record.split or self.config.split,
        )
        if self.config.splits and record.split not in self.config.splits:
            return None
        return ParsedRecord(where=raw.where, record=record, line=raw.line)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Top-level fields that any layout or the run file reads."""
        layouts = LAYOUTS.values()
        fields = {key for layout in layouts for key in layout.keys}
        for names in (*(layout.names for layout in layouts), self.named):
            fields |= {name for candidates in names.values() for name in candidates}
        return _COMMON_FIELDS | fields | {name.partition(".")[0] for name in fields}

    def check_fields(self, found: Collection[str], where: str) -> None:
        """Check that all named fields were found, and that the fields can form a record.

        Raises:
            ConfigError: A named field does not exist, or the fields do not fit any layout.
        """
        outer = sorted(name for name in found if "." not in name)
        has = f"It has: {', '.join(outer) or 'no fields'}."
        for field, names in self.named.items():
            for name in names:
                if name not in found:
                    hint = suggest(name, found)
                    hint = hint if hint.startswith(" Did") else ""
                    raise ConfigError(f"fields.{field}: {where} has no field '{name}'. {has}{hint}")
        keys = LAYOUT_BY_KEY.keys() if self._layout == "auto" else LAYOUTS[self._layout].keys
        if _CONTENT.isdisjoint(self.named) and not any(key in found for key in keys):
            raise ConfigError(
                f"layout: {where} has none of the fields {', '.join(keys)}. {has} Name the fields "
                "in the table 'fields', such as fields.image and fields.captions."
            )

    def _name_classes(self, value: dict[str, Any]) -> None:
        """Replace class numbers in the captions with class names."""
        if not self._classes:
            return
        for name in self.named.get("captions", ("caption",)):
            number = value.get(name)
            if isinstance(number, int) and 0 <= number < len(self._classes):
                value[name] = self._classes[number]


def field_names(value: Any, depth: int = 3) -> set[str]:
    """Return the keys of a mapping and, down to `depth`, of nested mappings as `outer.inner`."""
    if not isinstance(value, Mapping) or not depth:
        return set()
    inner = {
        f"{key}.{name}" for key, item in value.items() for name in field_names(item, depth - 1)
    }
    return {str(key) for key in value} | inner


def _rejected(raw: RawRecord, problem: str) -> ParsedRecord:
    return ParsedRecord(
        where=raw.where, record=None, problem=problem, line=raw.line, rest_lost=raw.rest_lost
    )


@lru_cache(maxsize=4)
def _read_classes(file: str) -> tuple[str, ...]:
    if not file:
        return ()
    try:
        with open_raw(file) as stream:
            names = stream.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"classes: {file} cannot be read ({one_line(error)}). Check the path."
        ) from error
    if not all(name.strip() for name in names):
        raise ConfigError(f"classes: {file} contains an empty line. Write one name per line.")
    return tuple(name.strip() for name in names)
