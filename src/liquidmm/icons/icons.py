"""The built-in real data: colour icons of shared concepts in several styles, with a fixed split.

Contract: `build_icons` reads the npm tarballs of `@iconify/json` and `emojibase-data` as they are
and writes a folder::

    images/<style>/<concept>.png    RGB, white background, size x size
    records.jsonl                   one record per picture, sorted by key
    summary.json                    counts per style, split and licence; what was dropped and why

The same input gives the same bytes, and the folder appears complete or not at all. The split
depends on a hash of the concept (and style), never on order, so a concept keeps its part when
styles are added.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.captions import captions
from liquidmm.icons.choice import Choice, choose, distinct
from liquidmm.icons.concepts import Concept, ConceptTable, read_concepts
from liquidmm.icons.icon_sets import (
    IconSet,
    check_license,
    color_styles,
    read_collections,
    read_json,
    read_sets,
    read_trademarks,
)
from liquidmm.runtime import require_extra

DEFAULT_STYLES = ("noto", "twemoji", "fluent-emoji-flat", "emojione")
"""The four styles of the default model."""
Split = Literal["train", "held_out_concepts", "held_out_pairs"]
_SHORTCODES = ("cldr", "emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")


@dataclass(frozen=True, kw_only=True, slots=True)
class IconsConfig:
    """What to render and how to split it."""

    styles: tuple[str, ...] = DEFAULT_STYLES
    """Prefixes of icon sets."""
    all_styles: bool = False
    """Take every permissively licensed colour set instead of `styles`."""
    share_alike: bool = False
    """Accept share-alike sets among `styles`; what is made from them is bound by their licence."""
    size: int = 64
    """Side of the pictures in pixels."""
    margin: int = 2
    """White border in pixels, for sets that are drawn up to their edge."""
    held_out_concepts: float = 0.04
    """Share of concepts of which no style is in training."""
    held_out_pairs: float = 0.06
    """Share of (concept, style) pairs kept out while two other styles of the concept stay in."""
    seed: int = 0
    """Another seed is another split."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A share outside [0, 0.5], or a size that leaves no room.
        """
        for name in ("held_out_concepts", "held_out_pairs"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} is no share from 0 to 0.5. Lower it."
                )
        if self.margin < 0 or self.size < 8 + 2 * self.margin:
            raise ConfigError(
                f"size: {self.size} px with a margin of {self.margin} leaves no picture. Use 16 "
                f"or more."
            )
        if not self.styles and not self.all_styles:
            raise ConfigError("styles: empty. Name at least one icon set, or ask for all.")


def build_icons(
    iconify: Path,
    emojibase: Path,
    out: Path,
    config: IconsConfig,
    *,
    overwrite: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Render the icon sets into a folder of pictures and records.

    Args:
        iconify: Tarball of `@iconify/json`.
        emojibase: Tarball of `emojibase-data`.
        out: Folder to write.
        config: Styles, size and split.
        overwrite: Replace `out` when it exists.
        progress: Wraps the list of things to render, to show a bar.

    Returns:
        What is in `summary.json`.

    Raises:
        ConfigError: An unknown style, or one whose licence forbids it.
        DataError: A broken tarball, or an icon that can't be rendered.
        LiquidError: `out` is in the way, or the disk is full.
        MissingExtraError: `resvg-py` is not installed.
    """
    collections = read_collections(iconify)
    styles = color_styles(collections) if config.all_styles else config.styles
    chosen = [
        check_license(collections, style, config.share_alike) for style in dict.fromkeys(styles)
    ]
    table = _concepts(emojibase)
    # No emoji is a trademark; sets of other icons hold some.
    others = any(not collection.emoji for collection in chosen)
    trademarks = read_trademarks(iconify, collections) if others else frozenset()
    dropped: Counter[str] = Counter()
    kept: list[tuple[IconSet, Choice, bytes]] = []
    for icons in read_sets(iconify, chosen):
        choices = choose(icons, table, trademarks, dropped)
        pictures = [(choice, render(icons, choice.icon, config)) for choice in progress(choices)]
        kept.extend((icons, choice, picture) for choice, picture in distinct(pictures, dropped))
    split = split_pairs(
        [(choice.concept.id, icons.collection.prefix) for icons, choice, _ in kept], config
    )
    with atomic_folder(out, overwrite=overwrite) as folder:
        records = []
        for icons, choice, picture in kept:
            record = _record(
                icons, choice.concept, split[choice.concept.id, icons.collection.prefix]
            )
            path = folder / record["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
            records.append(record)
        records.sort(key=lambda record: str(record["key"]))
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        summary = _summary(records, dropped, config)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def render(icons: IconSet, name: str, config: IconsConfig) -> bytes:
    """Draw one icon on white.

    Args:
        icons: The set it is in.
        name: Its name there.
        config: Size and margin.

    Returns:
        A PNG file, RGB, `config.size` square.

    Raises:
        DataError: The drawing can't be rendered.
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
            f"{icons.collection.prefix}/{name}: can't be rendered ({error}). Leave the set out."
        ) from error
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    white = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
    white.alpha_composite(drawn)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def split_pairs(
    pairs: Sequence[tuple[str, str]], config: IconsConfig
) -> dict[tuple[str, str], Split]:
    """Decide which pictures are for training.

    Args:
        pairs: (concept, style), each once, in any order.
        config: Shares and seed.

    Returns:
        The part of each pair. A held-out pair's concept is in training in at least two other
        styles.
    """
    styles: dict[str, list[str]] = {}
    for concept, style in pairs:
        styles.setdefault(concept, []).append(style)
    parts: dict[tuple[str, str], Split] = {}
    for concept, found in styles.items():
        if _share(f"{config.seed}/{concept}") < config.held_out_concepts:
            parts.update({(concept, style): "held_out_concepts" for style in found})
            continue
        trained = len(found)
        for share, style in sorted(
            (_share(f"{config.seed}/{concept}/{style}"), style) for style in found
        ):
            held_out = share < config.held_out_pairs and trained > 2
            parts[concept, style] = "held_out_pairs" if held_out else "train"
            trained -= held_out
    return parts


def _concepts(emojibase: Path) -> ConceptTable:
    shortcodes = [f"en/shortcodes/{name}.json" for name in _SHORTCODES]
    data, groups, *names = read_json(emojibase, ["en/data.json", "meta/groups.json", *shortcodes])
    return read_concepts(data, groups, names)


def _record(icons: IconSet, concept: Concept, split: Split) -> dict[str, Any]:
    style = icons.collection.prefix
    noun = "emoji" if icons.collection.emoji else "icon"
    return {
        "key": f"{style}/{concept.id}",
        "image": f"images/{style}/{concept.id}.png",
        "concept": concept.id,
        "style": style,
        "group": concept.group,
        "name": concept.name,
        "captions": list(captions(concept.name, style, concept.subgroup, concept.tags, noun)),
        "source": f"{icons.collection.title} by {icons.collection.author}",
        "license": icons.collection.licence,
        "split": split,
    }


def _summary(
    records: Sequence[Mapping[str, Any]], dropped: Counter[str], config: IconsConfig
) -> dict[str, Any]:
    def counts(field: str) -> dict[str, int]:
        return dict(sorted(Counter(str(record[field]) for record in records).items()))

    shared = Counter(str(record["concept"]) for record in records)
    return {
        "pictures": len(records),
        "concepts": len(shared),
        "concepts_by_number_of_styles": {
            str(k): v for k, v in sorted(Counter(shared.values()).items())
        },
        "styles": counts("style"),
        "splits": counts("split"),
        "licenses": counts("license"),
        "groups": counts("group"),
        "dropped": dict(sorted(dropped.items())),
        "config": asdict(config),
    }


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
