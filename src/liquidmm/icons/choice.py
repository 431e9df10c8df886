"""Which drawings of an icon set are taken, and what each of them shows.

Contract: `choose` picks one drawing for each concept, by rules and a hash of names, never by order;
`distinct` drops what looks like another picture of the set. Both count what they leave out by the
reason.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from liquidmm.icons.concepts import Concept, ConceptTable, slug
from liquidmm.icons.icon_sets import IconSet

_SAME_PICTURE = 5.0
# Endings by which icon sets tell drawings of one thing apart.
_DRAWING_WORDS = frozenset({"flat", "duo", "fill", "color", "one", "two", "alt"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One icon that will be rendered."""

    concept: Concept
    """What it shows."""
    icon: str
    """Its name in the set."""


def choose(
    icons: IconSet, table: ConceptTable, trademarks: Collection[str], dropped: Counter[str]
) -> list[Choice]:
    """Pick one icon of a set for each concept.

    Args:
        icons: The set.
        table: Known concepts.
        trademarks: Names that only a set of emoji may use.
        dropped: Is counted up by the reason for each icon left out.

    Returns:
        Choices in official order.
    """
    ranked: dict[str, tuple[tuple[int, str], Choice]] = {}
    for name in sorted(icons.icons):
        names = (name, *icons.aliases.get(name, ()))
        code = table.code(names, icons.codes.get(name, ()))
        concept = _own_concept(icons, name) if code is None else table.by_code.get(code)
        if code is None and concept is not None and _is_trademark(concept, trademarks):
            dropped["trademark"] += 1
            continue
        if concept is None:
            dropped[
                "skin tone, letter or unnamed drawing"
                if code is None
                else "flag, letter, clock, family or mirrored double"
            ] += 1
            continue
        # A gendered drawing stands in only where the set has no neutral one; which gender is a
        # matter of the hash.
        rank = (int(code in table.gendered) if code else 0, _hash(f"{concept.id}/{name}"))
        rank = (rank[0], "" if slug(concept.name) == name else rank[1])
        if concept.id in ranked:
            dropped["second drawing of a concept"] += 1
        if concept.id not in ranked or rank < ranked[concept.id][0]:
            ranked[concept.id] = (rank, Choice(concept=concept, icon=name))
    return sorted(
        (choice for _, choice in ranked.values()), key=lambda c: (c.concept.order, c.concept.id)
    )


def distinct(
    pictures: Sequence[tuple[Choice, bytes]], dropped: Counter[str]
) -> list[tuple[Choice, bytes]]:
    """Keep the first of pictures that look the same: a root mean square below 5 at 32 x 32.

    Args:
        pictures: Choices with their PNG files.
        dropped: Is counted up by the reason for each picture left out.

    Returns:
        The kept ones, in order.
    """
    kept: list[tuple[Choice, bytes]] = []
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


def _own_concept(icons: IconSet, name: str) -> Concept | None:
    """A concept for an unknown icon; None in emoji sets, whose rest is letters and doubles."""
    if icons.collection.emoji:
        return None
    words = [word for word in name.split("-") if not word.isdigit()]
    while len(words) > 1 and words[-1] in _DRAWING_WORDS:
        words.pop()
    if not words:
        return None
    group = slug(icons.categories.get(name) or icons.collection.category) or "icons"
    others = tuple(alias.replace("-", " ") for alias in icons.aliases.get(name, ()))
    return Concept(
        id="-".join(words), name=" ".join(words), group=group, tags=others, order=1 << 31
    )


def _is_trademark(concept: Concept, trademarks: Collection[str]) -> bool:
    words = concept.id.split("-")
    return concept.group == "brand" or words[-1] == "logo" or concept.id in trademarks


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
