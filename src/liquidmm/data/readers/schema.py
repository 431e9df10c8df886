"""What a place of a file holds, as an entry: fields by their names, layout, constants, splits.

Contract: null is a missing field. Whatever is wrong with a row becomes the `problem` of its entry.
Fields that the run file names and the source does not have are a `ConfigError`, found by `check`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from liquidmm.data.readers.chunks import ParsedRecord, RawRecord
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import open_file, reason
from liquidmm.data.readers.layouts import LAYOUT_BY_KEY, LAYOUTS, parse_entry
from liquidmm.errors import ConfigError, DataError, suggest

_READ = frozenset(
    (
        *("key", "id", "conversation_id", "source", "license", "split"),
        *("image", "captions", "caption", "text_prompt", "text"),
        *("messages", "images", "conversations", "conversation"),
        *("video", "videos", "audio", "audios"),
    )
)
"""Fields that some layout reads under the same name as ours, or refuses."""

METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Tables that describe the pictures beside them and below, as Hugging Face's ImageFolder has it."""

_CONTENT = frozenset({"image", "text", "messages"})


class RecordSchema:
    """Makes entries of what a source holds."""

    def __init__(self, config: SourceConfig, file: str = "") -> None:
        """Prepare for the entries of one file.

        Args:
            config: The source.
            file: The file; one of `METADATA` describes the pictures beside it.
        """
        self.config = config
        self.given = config.fields.given()
        self._layout: str = config.layout
        if config.layout == "auto" and PurePosixPath(file).name in METADATA:
            self._layout = "imagefolder"
        self._classes = _classes(config.classes)

    def entry(self, item: RawRecord, root: Path | str) -> ParsedRecord | None:
        """Return the entry of a place, or None when it is of a split that is not taken.

        Args:
            item: What stands there.
            root: Folder or URL that relative picture paths start from.
        """
        if item.problem:
            return self._refused(item, item.problem)
        value = item.value
        if isinstance(value, Mapping):
            value = {name: cell for name, cell in value.items() if cell is not None}
            self._name_classes(value)
        try:
            record = parse_entry(value, item.where, root, self._layout, self.given)
        except DataError as error:
            return self._refused(item, str(error))
        record = replace(
            record,
            source=record.source or self.config.name,
            license=record.license or self.config.license,
            split=record.split or self.config.split,
        )
        if self.config.splits and record.split not in self.config.splits:
            return None
        return ParsedRecord(where=item.where, record=record, line=item.line)

    @cached_property
    def wanted(self) -> frozenset[str]:
        """Return the fields that are read, without what lies inside them."""
        layouts = LAYOUTS.values()
        fields = {key for layout in layouts for key in layout.keys}
        named = [*(layout.names for layout in layouts), self.given]
        fields |= {name for names in named for all_of in names.values() for name in all_of}
        return _READ | fields | {name.partition(".")[0] for name in fields}

    def check(self, found: Collection[str], where: str) -> None:
        """Refuse field names that don't exist and entries that fit no layout.

        Args:
            found: The fields there are; what lies inside one is named `outer.inner`.
            where: The file they were found in.

        Raises:
            ConfigError: A field that the configuration names is not there, or nothing is that could
                be a record.
        """
        outer = sorted(name for name in found if "." not in name)
        has = f"It has: {', '.join(outer) or 'no fields'}."
        for field, names in self.given.items():
            for name in names:
                if name not in found:
                    hint = suggest(name, found)
                    hint = hint if hint.startswith(" Did") else ""
                    raise ConfigError(f"fields.{field}: {where} has no field '{name}'. {has}{hint}")
        layout = self._layout
        keys = LAYOUT_BY_KEY.keys() if layout == "auto" else LAYOUTS[layout].keys
        if not (_CONTENT & self.given.keys() or any(key in found for key in keys)):
            raise ConfigError(
                f"layout: {where} has none of the fields {', '.join(keys)}. {has} Name them in "
                "'fields', such as fields.image and fields.captions."
            )

    def _name_classes(self, value: dict[str, Any]) -> None:
        if not self._classes:
            return
        for name in self.given.get("captions", ("caption",)):
            number = value.get(name)
            if isinstance(number, int) and 0 <= number < len(self._classes):
                value[name] = self._classes[number]

    def _refused(self, item: RawRecord, problem: str) -> ParsedRecord:
        return ParsedRecord(
            where=item.where, record=None, problem=problem, line=item.line, broken=item.broken
        )


def paths(value: Any, depth: int = 3) -> set[str]:
    """Return the keys of a mapping and, to some depth, of those in it as `outer.inner`."""
    if not isinstance(value, Mapping) or not depth:
        return set()
    inner = {f"{key}.{name}" for key, item in value.items() for name in paths(item, depth - 1)}
    return {str(key) for key in value} | inner


@lru_cache(maxsize=4)
def _classes(file: str) -> tuple[str, ...]:
    if not file:
        return ()
    try:
        with open_file(file) as stream:
            names = stream.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"classes: {file}: can't be read ({reason(error)}).") from error
    if not all(name.strip() for name in names):
        raise ConfigError(f"classes: {file}: has an empty line. Write one name per line.")
    return tuple(name.strip() for name in names)
