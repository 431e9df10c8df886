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

import numpy as np
from PIL import Image

from liquidmm.data.icon_captions import captions
from liquidmm.data.icon_concepts import Concept, ConceptTable, read_concepts, slug
from liquidmm.data.icon_sets import (
    IconSet,
    check_licence,
    colour_styles,
    read_collections,
    read_json,
    read_sets,
)
from liquidmm.errors import ConfigError, DataError
from liquidmm.runtime import atomic_folder, require

DEFAULT_STYLES = ("noto", "twemoji", "fluent-emoji-flat", "emojione")
"""The four styles of the default model."""
Split = Literal["train", "held_out_concepts", "held_out_pairs"]
_SHORTCODES = ("cldr", "emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")
_SAME_PICTURE = 5.0
# Endings by which icon sets tell drawings of one thing apart.
_DRAWING_WORDS = frozenset({"flat", "duo", "fill", "color", "one", "two", "alt"})


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """One icon that will be rendered."""

    concept: Concept
    icon: str


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
    styles = colour_styles(collections) if config.all_styles else config.styles
    chosen = [
        check_licence(collections, style, config.share_alike) for style in dict.fromkeys(styles)
    ]
    table = _concepts(emojibase)
    dropped: Counter[str] = Counter()
    kept: list[tuple[IconSet, _Choice, bytes]] = []
    for icons in read_sets(iconify, chosen):
        choices = choose(icons, table, dropped)
        pictures = [(choice, render(icons, choice.icon, config)) for choice in progress(choices)]
        kept.extend((icons, choice, picture) for choice, picture in _distinct(pictures, dropped))
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


def choose(icons: IconSet, table: ConceptTable, dropped: Counter[str]) -> list[_Choice]:
    """Pick one icon of a set for each concept.

    Args:
        icons: The set.
        table: Known concepts.
        dropped: Is counted up by the reason for each icon left out.

    Returns:
        Choices in official order.
    """
    ranked: dict[str, tuple[tuple[int, str], _Choice]] = {}
    for name in sorted(icons.icons):
        names = (name, *icons.aliases.get(name, ()))
        code = table.code(names, icons.codes.get(name, ()))
        concept = _own_concept(icons, name) if code is None else table.by_code.get(code)
        if concept is None:
            dropped[
                "skin tone, letter or unnamed drawing"
                if code is None
                else "flag, letter, clock, family or mirrored double"
            ] += 1
            continue
        # A gendered drawing stands in only where the set has no neutral one; which gender is a
        # matter of the hash.
        rank = (int(code in table.gendered) if code else 0, _digest(f"{concept.id}/{name}"))
        rank = (rank[0], "" if slug(concept.name) == name else rank[1])
        if concept.id in ranked:
            dropped["second drawing of a concept"] += 1
        if concept.id not in ranked or rank < ranked[concept.id][0]:
            ranked[concept.id] = (rank, _Choice(concept=concept, icon=name))
    return sorted(
        (choice for _, choice in ranked.values()), key=lambda c: (c.concept.order, c.concept.id)
    )


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
    resvg = require("resvg_py", "icons")
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


def _own_concept(icons: IconSet, name: str) -> Concept | None:
    """A concept for an unknown icon; None in emoji sets, whose rest is letters and doubles."""
    if icons.collection.category == "Emoji" or "emoji" in icons.collection.prefix:
        return None
    words = [word for word in name.split("-") if not word.isdigit()]
    while len(words) > 1 and words[-1] in _DRAWING_WORDS:
        words.pop()
    if not words:
        return None
    group = slug(icons.categories.get(name) or icons.collection.category) or "icons"
    return Concept(id="-".join(words), name=" ".join(words), group=group, order=1 << 31)


def _distinct(
    pictures: Sequence[tuple[_Choice, bytes]], dropped: Counter[str]
) -> list[tuple[_Choice, bytes]]:
    """Keep the first of pictures that look the same: a root mean square below 5 at 32 x 32."""
    kept: list[tuple[_Choice, bytes]] = []
    seen = np.empty((len(pictures), 32 * 32 * 3), dtype=np.float32)
    for choice, png in pictures:
        small = Image.open(io.BytesIO(png)).resize((32, 32), Image.Resampling.BOX)
        row = np.asarray(small, dtype=np.float32).reshape(-1)
        distance = np.sqrt(((seen[: len(kept)] - row) ** 2).mean(axis=1))
        if row.min() > 250:
            dropped["empty picture"] += 1
        elif kept and distance.min() < _SAME_PICTURE:
            dropped["looks like another icon of its style"] += 1
        else:
            seen[len(kept)] = row
            kept.append((choice, png))
    return kept


def _record(icons: IconSet, concept: Concept, split: Split) -> dict[str, Any]:
    style = icons.collection.prefix
    return {
        "key": f"{style}/{concept.id}",
        "image": f"images/{style}/{concept.id}.png",
        "concept": concept.id,
        "style": style,
        "group": concept.group,
        "name": concept.name,
        "captions": list(captions(concept.name, style, concept.subgroup, concept.tags)),
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int(_digest(text)[:13], 16) / 16**13
