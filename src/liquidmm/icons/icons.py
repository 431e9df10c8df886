"""The built-in images: color icons of shared concepts in several styles, with a fixed split.

`build_icons` reads the npm tarballs of `@iconify/json` and `emojibase-data` and writes a folder::

    images/<style>/<concept>.png    RGB, white background, size x size
    records.jsonl                   one record per image, sorted by key
    summary.json                    counts per style, split and license, and what was dropped

The same input gives the same bytes. The split depends on a hash of the concept (and style), never
on the order, so adding styles does not change the split of a concept.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.captions import captions
from liquidmm.icons.concepts import Concept, ConceptTable, choose, distinct, read_concepts
from liquidmm.icons.icon_sets import (
    Collection,
    IconSet,
    check_license,
    color_styles,
    read_collections,
    read_json,
    read_sets,
    read_trademarks,
)
from liquidmm.icons.io import hash_share, write_jsonl, write_summary
from liquidmm.ranges import check_ranges
from liquidmm.runtime import require_extra

DEFAULT_STYLES = ("noto", "twemoji", "fluent-emoji-flat", "emojione")
"""The four styles of the default model."""
Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps a list of work items to show a progress bar."""
Split = Literal["train", "held_out_concepts", "held_out_pairs"]
_SHORTCODES = ("cldr", "emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")


@dataclass(frozen=True, kw_only=True, slots=True)
class IconsConfig:
    """What to render and how to split it."""

    styles: tuple[str, ...] = DEFAULT_STYLES
    """Prefixes of icon sets."""
    all_styles: bool = False
    """Use every permissively licensed color set instead of `styles`."""
    share_alike: bool = False
    """Accept share-alike sets in `styles`; their license also applies to derived works."""
    size: int = 64
    """Width and height of the images in pixels."""
    margin: int = 2
    """White border in pixels for sets whose drawings have no border."""
    held_out_concepts: Annotated[float, Ge(0), Le(0.5)] = 0.04
    """Fraction of concepts that are held out in all styles."""
    held_out_pairs: Annotated[float, Ge(0), Le(0.5)] = 0.06
    """Held-out fraction of (concept, style) pairs; two other styles of the concept are trained
    on."""
    seed: int = 0
    """Seed for the split."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_ranges(self)
        if self.margin < 0 or self.size < 8 + 2 * self.margin:
            raise ConfigError(
                f"size: expected at least 8 pixels inside a margin of 0 or more, got size "
                f"{self.size} and margin {self.margin}."
            )
        if not self.styles and not self.all_styles:
            raise ConfigError("styles: is empty. Add at least one icon set, or use all of them.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rendered:
    """One icon with its PNG file."""

    collection: Collection
    concept: Concept
    png: bytes

    @property
    def pair(self) -> tuple[str, str]:
        return self.concept.id, self.collection.prefix


def build_icons(
    iconify: Path,
    emojibase: Path,
    out: Path,
    config: IconsConfig,
    *,
    overwrite: bool = False,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Render icon sets to a folder of images and records.

    Args:
        iconify: Tarball of `@iconify/json`.
        emojibase: Tarball of `emojibase-data`.
        out: Folder to write.
        config: Styles, size and split.
        overwrite: Replace `out` if it exists.
        progress: Wraps the icons of each set.

    Returns:
        The content of `summary.json`.

    Raises:
        ConfigError: A style is unknown, or its license does not allow its use.
        DataError: A tarball is damaged, or an icon cannot be rendered.
        LiquidError: `out` exists, or cannot be written.
        MissingExtraError: `resvg-py` is not installed.
    """
    collections = read_collections(iconify)
    styles = color_styles(collections) if config.all_styles else config.styles
    chosen = [
        check_license(collections, style, config.share_alike) for style in dict.fromkeys(styles)
    ]
    # Emoji are not trademarks; other sets contain some.
    has_others = any(not collection.is_emoji for collection in chosen)
    trademarks = read_trademarks(iconify, collections) if has_others else frozenset()
    table = _read_table(emojibase)
    dropped: Counter[str] = Counter()
    rendered: list[_Rendered] = []
    for icons in read_sets(iconify, chosen):
        choices = choose(icons, table, trademarks, dropped)
        images = [(choice, render(icons, choice.icon, config)) for choice in progress(choices)]
        rendered.extend(
            _Rendered(collection=icons.collection, concept=choice.concept, png=png)
            for choice, png in distinct(images, dropped)
        )
    split = split_pairs([icon.pair for icon in rendered], config)
    records = sorted(
        (_record(icon, split[icon.pair]) for icon in rendered),
        key=lambda record: str(record["key"]),
    )
    summary = _summary(records, dropped, config)
    with atomic_folder(out, overwrite=overwrite) as folder:
        for icon in rendered:
            path = folder / _image_path(icon)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(icon.png)
        write_jsonl(folder / "records.jsonl", records)
        write_summary(folder, summary)
    return summary


def render(icons: IconSet, name: str, config: IconsConfig) -> bytes:
    """Render one icon on white.

    Args:
        icons: The set that contains it.
        name: Its name in the set.
        config: Size and margin.

    Returns:
        A PNG file, RGB, `config.size` square.

    Raises:
        DataError: The icon cannot be rendered.
        MissingExtraError: `resvg-py` is not installed.
    """
    resvg = require_extra("resvg_py", "icons")
    try:
        png = resvg.svg_to_bytes(
            svg_string=icons.svg(name, config.size, config.margin),
            width=config.size,
            height=config.size,
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise DataError(
            f"{icons.collection.prefix}/{name}: cannot be rendered ({error}). Remove the set from "
            "the list of styles."
        ) from error
    icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", icon.size, (255, 255, 255, 255))
    canvas.alpha_composite(icon)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def split_pairs(
    pairs: Sequence[tuple[str, str]], config: IconsConfig
) -> dict[tuple[str, str], Split]:
    """Assign each image to a split.

    Args:
        pairs: Unique (concept, style) pairs in any order.
        config: Fractions and seed.

    Returns:
        The split of each pair. Training includes the concept of a held-out pair in at least two
        other styles.
    """
    styles: dict[str, list[str]] = {}
    for concept, style in pairs:
        styles.setdefault(concept, []).append(style)
    splits: dict[tuple[str, str], Split] = {}
    for concept, found in styles.items():
        if hash_share(f"{config.seed}/{concept}") < config.held_out_concepts:
            splits.update({(concept, style): "held_out_concepts" for style in found})
            continue
        trained = len(found)
        for share, style in sorted(
            (hash_share(f"{config.seed}/{concept}/{style}"), style) for style in found
        ):
            held_out = share < config.held_out_pairs and trained > 2
            splits[concept, style] = "held_out_pairs" if held_out else "train"
            trained -= held_out
    return splits


def _read_table(emojibase: Path) -> ConceptTable:
    shortcodes = [f"en/shortcodes/{name}.json" for name in _SHORTCODES]
    data, groups, *names = read_json(emojibase, ["en/data.json", "meta/groups.json", *shortcodes])
    return read_concepts(data, groups, names)


def _image_path(icon: _Rendered) -> str:
    return f"images/{icon.collection.prefix}/{icon.concept.id}.png"


def _record(icon: _Rendered, split: Split) -> dict[str, Any]:
    collection, concept = icon.collection, icon.concept
    style = collection.prefix
    noun = "emoji" if collection.is_emoji else "icon"
    return {
        "key": f"{style}/{concept.id}",
        "image": _image_path(icon),
        "concept": concept.id,
        "style": style,
        "group": concept.group,
        "name": concept.name,
        "captions": list(captions(concept.name, style, concept.subgroup, concept.tags, noun)),
        "source": f"{collection.title} by {collection.author}",
        "license": collection.license,
        "split": split,
    }


def _summary(
    records: Sequence[Mapping[str, Any]], dropped: Counter[str], config: IconsConfig
) -> dict[str, Any]:
    def counts(field: str) -> dict[str, int]:
        return dict(sorted(Counter(str(record[field]) for record in records).items()))

    per_concept = Counter(str(record["concept"]) for record in records)
    return {
        "pictures": len(records),
        "concepts": len(per_concept),
        "concepts_by_number_of_styles": {
            str(styles): number for styles, number in sorted(Counter(per_concept.values()).items())
        },
        "styles": counts("style"),
        "splits": counts("split"),
        "licenses": counts("license"),
        "groups": counts("group"),
        "dropped": dict(sorted(dropped.items())),
        "config": asdict(config),
    }
