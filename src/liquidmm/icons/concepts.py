"""What an emoji shows: one concept per meaning, shared by all icon sets.

Contract: `read_concepts` turns the official emoji table (the `emojibase-data` package) into a table
of concepts and drops what nobody could tell apart at 64 pixels or what is no picture of a thing:
flags, skin tones, keycaps, clock faces, family permutations, mirrored doubles and the gendered
variants of a neutral person. `ConceptTable.code` finds what the name an icon set uses stands for.
Everything here is pure; no file is opened.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from liquidmm.icons.names import MISLEADING, PLAIN_NAMES, SET_NAMES

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One meaning, whatever style it is drawn in."""

    id: str
    """Lower-case words joined by hyphens, unique in the table: `red-apple`."""
    name: str
    """Plain English, without an article: `red apple`."""
    group: str
    """Official group, or the set's own category: `food-drink`."""
    subgroup: str = ""
    """Official subgroup, `food-fruit`; empty where there is none."""
    tags: tuple[str, ...] = ()
    """Official keywords."""
    order: int = 0
    """Official order; ties and doubles are settled by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptTable:
    """Concepts by code sequence, and every known name of them."""

    by_code: Mapping[str, Concept | None]
    """Normalised code sequence to concept; None where the picture is dropped on purpose."""
    by_name: Mapping[str, str]
    """Slug of a label or shortcode to code sequence."""
    gendered: Mapping[str, str] = field(default_factory=dict)
    """Code sequence of a man or woman to that of the neutral person."""

    def code(self, names: Sequence[str], codes: Iterable[str]) -> str | None:
        """Find the code sequence an icon stands for.

        Args:
            names: The set's own name, then its aliases.
            codes: Code sequences the set declares for it; they win over names.

        Returns:
            The normalised code sequence, or None when nothing is known under these names.
        """
        if names[0] in MISLEADING:
            return None
        for candidate in codes:
            if (code := normalise(candidate)) in self.by_code:
                return code
        for name in names:
            if (found := self.by_name.get(name)) is not None:
                return found
        for name in names:
            if (found := self.by_name.get(name.replace("-", ""))) is not None:
                return found
        return None


def slug(text: str) -> str:
    """Spell a label as iconify spells icon names: `woman\u2019s hat` becomes `womans-hat`."""
    text = (
        text.lower()
        .replace("\u2019", "")
        .replace("'", "")
        .replace("\u00f1", "n")
        .replace("&", "and")
    )
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def normalise(code: str) -> str:
    """Upper-case code sequence without variation selectors: `2764-fe0f` becomes `2764`."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def plain_name(label: str) -> str:
    """The words people use for an official label: `automobile` becomes `car`."""
    label = PLAIN_NAMES.get(label, label)
    for pattern, words in _REWORDED:
        label = pattern.sub(words, label)
    return (
        label.replace("\u2019", "'")
        .replace("\u201c", "")
        .replace("\u201d", "")
        .replace("\u00f1", "n")
        .replace(":", "")
    )


def read_concepts(
    data: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Mapping[str, str]],
    shortcodes: Sequence[Mapping[str, str | list[str]]] = (),
) -> ConceptTable:
    """Build the table from emojibase's own files.

    Args:
        data: `en/data.json`: hexcode, label, tags, group, subgroup, order.
        groups: `meta/groups.json`: numbers to names of groups and subgroups.
        shortcodes: Files of `en/shortcodes`, the most trusted first.

    Returns:
        Concepts with unique ids; a code whose picture is dropped maps to None.
    """
    labels = {normalise(row["hexcode"]): str(row["label"]) for row in data}
    by_code: dict[str, Concept | None] = {}
    gendered: dict[str, str] = {}
    taken: set[str] = set()
    for row in sorted(data, key=lambda row: int(row.get("order", 1 << 30))):
        code = normalise(row["hexcode"])
        group = groups["groups"].get(str(row.get("group")), "component")
        subgroup = groups["subgroups"].get(str(row.get("subgroup")), "")
        neutral = _neutral(code)
        if (
            neutral != code
            and neutral in labels
            and not _is_dropped(labels[neutral], group, subgroup)
        ):
            gendered[code] = neutral
            continue
        if _is_dropped(str(row["label"]), group, subgroup):
            by_code[code] = None
            continue
        name = plain_name(str(row["label"]))
        identity = slug(name)
        if identity in taken:
            by_code[code] = None
            continue
        taken.add(identity)
        by_code[code] = Concept(
            id=identity,
            name=name,
            group=group,
            subgroup=subgroup,
            tags=tuple(str(tag) for tag in row.get("tags", ())),
            order=int(row.get("order", 1 << 30)),
        )
    for code, neutral in gendered.items():
        by_code[code] = by_code.get(neutral)
    return ConceptTable(by_code=by_code, by_name=_names(labels, shortcodes), gendered=gendered)


def _is_dropped(label: str, group: str, subgroup: str) -> bool:
    return (
        group in _DROPPED_GROUPS
        or (
            subgroup in _DROPPED_SUBGROUPS
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
        if normalise(code) in labels:
            names.setdefault(name, normalise(code))
    for table in shortcodes:
        for code, values in table.items():
            if normalise(code) in labels:
                for value in [values] if isinstance(values, str) else values:
                    names.setdefault(slug(value), normalise(code))
    for name, code in list(names.items()):
        names.setdefault(name.replace("-", ""), code)
    return names
