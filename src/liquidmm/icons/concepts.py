"""The concepts of icons: one concept per meaning, shared by all icon sets, with one drawing each.

Concepts that cannot be recognized at 64 pixels or are not things are dropped: flags, skin tones,
keycaps, clock faces, family permutations, mirrored duplicates, and the gendered variants of a
neutral person. Rules and a hash of names, never the order, determine which drawings are used;
dropped icons are counted by reason.
"""

import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from liquidmm.icons.icon_names import MISLEADING, PLAIN_NAMES, SET_NAMES
from liquidmm.icons.icon_sets import IconSet
from liquidmm.icons.io import text_hash

_DROPPED_GROUPS = frozenset({"component", "flags"})
_DROPPED_SUBGROUPS = frozenset({"family", "keycap", "skin-tone", "hair-style"})
_DROPPED_LABELS = re.compile(
    "|".join(
        (
            "o\u2019clock$|-thirty$|facing right$",
            "^regional indicator|^Japanese \u201c",
            "^family|^kiss: |^couple with heart: |^pregnant (man|person)$|^Mx Claus$",
            "^(black|white) (medium|medium-small|small) square$|^small (orange|blue) diamond$",
            "^white (question|exclamation) mark$|^busts in silhouette$",
            "^speaker (low|medium) volume$",
            "^magnifying glass tilted right$|^right-facing fist$|^leftwards (hand|pushing hand)$",
            "^(men|women) (with bunny ears|wrestling)$",
            "^(women|men|woman and man) holding hands$",
        )
    )
)
_NEUTRAL_FIRST = {"1F468": "1F9D1", "1F469": "1F9D1"}
_REWORDED = (
    (re.compile(r"^(person|man|woman): (blond|red|curly|white) hair$"), r"\1 with \2 hair"),
    (re.compile(r"^(person|man|woman): beard$"), r"\1 with a beard"),
    (re.compile(r"^(person|man|woman): bald$"), r"bald \1"),
    (
        re.compile(
            "^(Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|"
            "Pisces|Ophiuchus)$"
        ),
        r"\1 sign",
    ),
)
_GENDER_SIGNS = ("-200D-2640", "-200D-2642")
_LAST = 1 << 30
"""Order of concepts that have no official order."""
_MIN_DISTANCE = 5.0
"""Root-mean-square difference at 32 x 32 pixels below which two images look the same."""
# Suffixes that icon sets use to distinguish drawings of the same thing.
_VARIANT_WORDS = frozenset({"flat", "duo", "fill", "color", "one", "two", "alt"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One meaning, the same in every style."""

    id: str
    """Lowercase words joined by hyphens, unique in the table: `red-apple`."""
    name: str
    """Plain English, without an article: `red apple`."""
    group: str
    """Official group, or the set's own category: `food-drink`."""
    subgroup: str = ""
    """Official subgroup, `food-fruit`; empty if there is none."""
    tags: tuple[str, ...] = ()
    """Official keywords."""
    order: int = 0
    """Official order, which resolves ties and duplicates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptTable:
    """Concepts by code sequence, and all their known names."""

    by_code: Mapping[str, Concept | None]
    """Normalized code sequence -> concept; None if deliberately dropped."""
    by_name: Mapping[str, str]
    """Slug of a label or shortcode -> code sequence."""
    gendered: Mapping[str, str] = field(default_factory=dict)
    """Code sequence of a man or woman -> that of the neutral person."""

    def code(self, names: Sequence[str], codes: Iterable[str]) -> str | None:
        """Find the code sequence of an icon.

        Args:
            names: Its name in the set, then its aliases.
            codes: Code sequences that the set declares for it; they take precedence over names.

        Returns:
            The normalized code sequence, or None if the names are unknown.
        """
        if names[0] in MISLEADING:
            return None
        for candidate in codes:
            if (code := normalize(candidate)) in self.by_code:
                return code
        for name in (*names, *(name.replace("-", "") for name in names)):
            if (found := self.by_name.get(name)) is not None:
                return found
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One icon to render."""

    concept: Concept
    """Concept of the icon."""
    icon: str
    """Its name in the set."""


def slug(text: str) -> str:
    """Convert a label to an icon name: `woman\u2019s hat` becomes `womans-hat`."""
    text = re.sub("[\u2019']", "", text.lower()).replace("\u00f1", "n").replace("&", "and")
    return re.sub("[^a-z0-9]+", "-", text).strip("-")


def normalize(code: str) -> str:
    """Return a code sequence in uppercase, without variation selectors: `2764-fe0f` is `2764`."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def plain_name(label: str) -> str:
    """Return the common name for an official label: `automobile` becomes `car`."""
    label = PLAIN_NAMES.get(label, label)
    for pattern, words in _REWORDED:
        label = pattern.sub(words, label)
    return re.sub("[\u201c\u201d:]", "", label.replace("\u2019", "'").replace("\u00f1", "n"))


def read_concepts(
    data: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Mapping[str, str]],
    shortcodes: Sequence[Mapping[str, str | list[str]]] = (),
) -> ConceptTable:
    """Build the table from the files of `emojibase-data`.

    Args:
        data: `en/data.json`: hexcode, label, tags, group, subgroup, order.
        groups: `meta/groups.json`: numbers to names of groups and subgroups.
        shortcodes: Files of `en/shortcodes`, in descending order of trust.

    Returns:
        Concepts with unique ids.
    """
    labels = {normalize(row["hexcode"]): str(row["label"]) for row in data}
    by_code: dict[str, Concept | None] = {}
    gendered: dict[str, str] = {}
    taken: set[str] = set()
    for row in sorted(data, key=lambda row: int(row.get("order", _LAST))):
        code = normalize(row["hexcode"])
        concept = _concept(row, groups)
        neutral = _neutral(code)
        if neutral != code and neutral in labels and not _is_dropped(labels[neutral], concept):
            gendered[code] = neutral
        elif concept.id in taken or _is_dropped(str(row["label"]), concept):
            by_code[code] = None
        else:
            taken.add(concept.id)
            by_code[code] = concept
    for code, neutral in gendered.items():
        by_code[code] = by_code.get(neutral)
    return ConceptTable(by_code=by_code, by_name=_names(labels, shortcodes), gendered=gendered)


def choose(
    icons: IconSet, table: ConceptTable, trademarks: Collection[str], dropped: Counter[str]
) -> list[Choice]:
    """Choose one icon of a set for each concept.

    Args:
        icons: The set.
        table: Known concepts.
        trademarks: Names that are allowed only in a set of emoji.
        dropped: Number of dropped icons by reason; updated.

    Returns:
        Choices in official order.
    """
    best: dict[str, tuple[tuple[bool, str], Choice]] = {}
    for name in sorted(icons.icons):
        found = _identify(icons, name, table, trademarks)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        concept, gendered = found
        # A gendered drawing is used only if the set has no neutral one; the hash chooses which.
        exact = slug(concept.name) == name
        rank = (gendered, "" if exact else text_hash(f"{concept.id}/{name}"))
        if concept.id in best:
            dropped["second drawing of a concept"] += 1
        if concept.id not in best or rank < best[concept.id][0]:
            best[concept.id] = (rank, Choice(concept=concept, icon=name))
    return sorted(
        (choice for _, choice in best.values()), key=lambda c: (c.concept.order, c.concept.id)
    )


def distinct(
    images: Sequence[tuple[Choice, bytes]], dropped: Counter[str]
) -> list[tuple[Choice, bytes]]:
    """Keep the first of several images that look the same, and drop empty images.

    Args:
        images: Choices with their PNG files.
        dropped: Number of dropped images by reason; updated.

    Returns:
        The remaining choices, in order.
    """
    kept: list[tuple[Choice, bytes]] = []
    seen = np.empty((len(images), 32 * 32 * 3), dtype=np.float32)
    for choice, png in images:
        small = Image.open(io.BytesIO(png)).resize((32, 32), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32).reshape(-1)
        distance = np.sqrt(((seen[: len(kept)] - pixels) ** 2).mean(axis=1))
        if pixels.min() > 250:
            dropped["empty picture"] += 1
        elif kept and distance.min() < _MIN_DISTANCE:
            dropped["looks like another icon of its style"] += 1
        else:
            seen[len(kept)] = pixels
            kept.append((choice, png))
    return kept


def _concept(row: Mapping[str, Any], groups: Mapping[str, Mapping[str, str]]) -> Concept:
    name = plain_name(str(row["label"]))
    return Concept(
        id=slug(name),
        name=name,
        group=groups["groups"].get(str(row.get("group")), "component"),
        subgroup=groups["subgroups"].get(str(row.get("subgroup")), ""),
        tags=tuple(str(tag) for tag in row.get("tags", ())),
        order=int(row.get("order", _LAST)),
    )


def _identify(
    icons: IconSet, name: str, table: ConceptTable, trademarks: Collection[str]
) -> tuple[Concept, bool] | str:
    """Return an icon's concept and whether it is a gendered variant, or the reason to drop it."""
    names = (name, *icons.aliases.get(name, ()))
    code = table.code(names, icons.codes.get(name, ()))
    if code is not None:
        known = table.by_code.get(code)
        if known is None:
            return "flag, letter, clock, family or mirrored double"
        return known, code in table.gendered
    concept = _unofficial_concept(icons, name)
    if concept is None:
        return "skin tone, letter or unnamed drawing"
    if concept.group == "brand" or concept.id.split("-")[-1] == "logo" or concept.id in trademarks:
        return "trademark"
    return concept, False


def _unofficial_concept(icons: IconSet, name: str) -> Concept | None:
    """Create a concept for an unknown icon; None in emoji sets, where it is a letter or copy."""
    words = [word for word in name.split("-") if not word.isdigit()]
    while len(words) > 1 and words[-1] in _VARIANT_WORDS:
        words.pop()
    if icons.collection.is_emoji or not words:
        return None
    return Concept(
        id="-".join(words),
        name=" ".join(words),
        group=slug(icons.categories.get(name) or icons.collection.category) or "icons",
        tags=tuple(alias.replace("-", " ") for alias in icons.aliases.get(name, ())),
        order=_LAST * 2,
    )


def _is_dropped(label: str, concept: Concept) -> bool:
    return (
        concept.group in _DROPPED_GROUPS
        or (
            concept.subgroup in _DROPPED_SUBGROUPS
            and not label.startswith(("couple with heart", "kiss", "people holding"))
        )
        or _DROPPED_LABELS.search(label) is not None
    )


def _neutral(code: str) -> str:
    for sign in _GENDER_SIGNS:
        if code.endswith(sign):
            return code.removesuffix(sign)
    first, joiner, rest = code.partition("-200D-")
    if joiner and first in _NEUTRAL_FIRST:
        return f"{_NEUTRAL_FIRST[first]}{joiner}{rest}"
    return code


def _names(
    labels: Mapping[str, str], shortcodes: Sequence[Mapping[str, str | list[str]]]
) -> dict[str, str]:
    names: dict[str, str] = {}
    for code, label in labels.items():
        names.setdefault(slug(label), code)
    for name, code in SET_NAMES.items():
        if normalize(code) in labels:
            names.setdefault(name, normalize(code))
    for table in shortcodes:
        for code, values in table.items():
            if normalize(code) in labels:
                for value in [values] if isinstance(values, str) else values:
                    names.setdefault(slug(value), normalize(code))
    for name, code in list(names.items()):
        names.setdefault(name.replace("-", ""), code)
    return names
