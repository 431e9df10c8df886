"""What a place of a file holds, as an entry: fields by their names, layout, constants, splits.

Contract: null is a missing field. Whatever is wrong with a row becomes the `problem` of its entry.
Fields that the run file names and the source does not have are a `ConfigError`, found by `check`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from liquidmm.data.layouts import LAYOUTS, TOLD_BY, parse_entry
from liquidmm.data.sources.config import SourceConfig
from liquidmm.data.sources.part import Entry, Item
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

_CONTENT = frozenset({"image", "text", "messages"})


class Rows:
    """Makes entries of what a source holds."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._given = config.fields.given()

    def entry(self, item: Item, root: Path | str) -> Entry | None:
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
        try:
            record = parse_entry(value, item.where, root, self._config.layout, self._given)
        except DataError as error:
            return self._refused(item, str(error))
        record = replace(
            record,
            source=record.source or self._config.name,
            license=record.license or self._config.license,
            split=record.split or self._config.split,
        )
        if self._config.splits and record.split not in self._config.splits:
            return None
        return Entry(where=item.where, record=record, line=item.line)

    def wanted(self) -> frozenset[str]:
        """Return the fields that are read, without what lies inside them."""
        layouts = LAYOUTS.values()
        fields = {key for layout in layouts for key in layout.keys}
        named = [*(layout.names for layout in layouts), self._given]
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
        for field, names in self._given.items():
            for name in names:
                if name not in found:
                    hint = suggest(name, found)
                    hint = hint if hint.startswith(" Did") else ""
                    raise ConfigError(f"fields.{field}: {where} has no field '{name}'. {has}{hint}")
        layout = self._config.layout
        keys = TOLD_BY.keys() if layout == "auto" else LAYOUTS[layout].keys
        if not (_CONTENT & self._given.keys() or any(key in found for key in keys)):
            raise ConfigError(
                f"layout: {where} has none of the fields {', '.join(keys)}. {has} Name them in "
                "'fields', such as fields.image and fields.captions."
            )

    def _refused(self, item: Item, problem: str) -> Entry:
        return Entry(
            where=item.where, record=None, problem=problem, line=item.line, broken=item.broken
        )


def paths(value: Any, depth: int = 3) -> set[str]:
    """Return the keys of a mapping and, to some depth, of those in it as `outer.inner`."""
    if not isinstance(value, Mapping) or not depth:
        return set()
    inner = {f"{key}.{name}" for key, item in value.items() for name in paths(item, depth - 1)}
    return {str(key) for key in value} | inner
