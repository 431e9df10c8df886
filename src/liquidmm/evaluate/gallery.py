"""The real icons as a gallery: seeded samples, and which real icon a picture is nearest to.

Reads what ``liquid data icons`` writes (``records.jsonl`` and its pictures). Nothing is drawn or
described here. Legend: N pictures, S side in pixels.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from liquidmm.errors import DataError
from liquidmm.evaluate.metrics import nearest, words
from liquidmm.image_tokenizer import images as pixels

SPLITS = ("train", "held_out_pairs", "held_out_concepts")
"""Where an icon may stand: trained, unseen concept-style pair of a seen concept, or unseen
concept."""

SIDE = 32
"""Side in pixels at which pictures are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Icon:
    """One real icon."""

    key: str
    """Unique name in the data set."""
    image: Path
    """Picture file."""
    concept: str
    """What it shows, the same in every style."""
    style: str
    """Style it is drawn in."""
    captions: tuple[str, ...]
    """English captions, the plainest first; at least one."""
    name: str
    """Concept as English words."""
    split: str
    """One of ``SPLITS``."""


def need(folder: Path, file: str, command: str) -> Path:
    """Path of a data file that must exist.

    Raises:
        DataError: It does not; the message names the command that makes it.
    """
    path = folder / file
    if not path.is_file():
        raise DataError(
            f"{folder}: no {file} there. Make it with `{command}`, or name its folder with --data."
        )
    return path


def read_icons(folder: Path) -> list[Icon]:
    """Read the icons of a data folder, in file order.

    Raises:
        DataError: The folder has no icons, or a line is not an icon record.
    """
    path = need(folder, "records.jsonl", "liquid data icons")
    icons = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            icons.append(_icon(line, f"{path}:{number}", folder))
    if not icons:
        raise DataError(f"{path}: no icons in it. Make it again with `liquid data icons`.")
    return icons


def _icon(line: str, where: str, folder: Path) -> Icon:
    """One line of ``records.jsonl``."""
    try:
        row = json.loads(line)
        icon = Icon(
            key=str(row["key"]),
            image=folder / row["image"],
            concept=str(row["concept"]),
            style=str(row["style"]),
            captions=tuple(str(caption) for caption in row["captions"]),
            name=str(row.get("name") or row["concept"]),
            split=str(row["split"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: no icon record ({error!r}). Make the data again with `liquid data icons`."
        ) from error
    if icon.split not in SPLITS or not icon.captions:
        raise DataError(
            f"{where}: split {icon.split!r}, {len(icon.captions)} captions. "
            "Make the data again with `liquid data icons`."
        )
    return icon


def sample(icons: Sequence[Icon], split: str, n: int, seed: int) -> list[Icon]:
    """Seeded sample of a split without replacement: one icon for each concept-style pair.

    Args:
        icons: All icons.
        split: One of ``SPLITS``.
        n: Wanted number; fewer come back where the split has fewer pairs.
        seed: The same seed, split and icons give the same sample.

    Raises:
        DataError: The split is empty.
    """
    pairs: dict[tuple[str, str], Icon] = {}
    for icon in icons:
        if icon.split == split:
            pairs.setdefault((icon.concept, icon.style), icon)
    if not pairs:
        raise DataError(
            f"icons: none with split {split!r}. Make the data again with `liquid data icons`."
        )
    pool = list(pairs.values())
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(pool))
    return [pool[place] for place in order[:n]]


def concept_names(icons: Iterable[Icon]) -> Mapping[str, tuple[str, ...]]:
    """Words of each concept name, for ``metrics.named``; concepts without a word are left out."""
    names = {icon.concept: words(icon.name) for icon in icons}
    return {concept: parts for concept, parts in names.items() if parts}


def shrink(images: Iterable[Image.Image], side: int = SIDE) -> Tensor:
    """Pictures at one small size.

    Returns:
        (N, 3, side, side) float32 in [-1, 1]; averaged down (box filter), so that the sizes compare
        alike.
    """
    small = [
        pixels.to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BOX))
        for image in images
    ]
    return torch.stack(small) if small else torch.empty(0, 3, side, side)


class Gallery:
    """All real icons of some styles, searchable one style at a time.

    Attributes:
        icons: The icons, in the given order.
        images: Their pictures, (N, 3, 32, 32) float32 in [-1, 1].
    """

    def __init__(self, icons: Sequence[Icon], styles: Iterable[str] | None = None) -> None:
        """Open the icons of the given styles (None: of all).

        Raises:
            DataError: A picture is missing or broken.
        """
        wanted = None if styles is None else set(styles)
        self.icons = [icon for icon in icons if wanted is None or icon.style in wanted]
        self.images = shrink(pixels.open_image(icon.image) for icon in self.icons)
        self._rows: dict[str, list[int]] = {}
        for row, icon in enumerate(self.icons):
            self._rows.setdefault(icon.style, []).append(row)

    def chance(self, style: str) -> float:
        """Share of a style's icons that a blind guess hits: one over its number of concepts."""
        return 1.0 / len({self.icons[row].concept for row in self._rows[style]})

    def nearest_concepts(
        self,
        images: Sequence[Image.Image],
        styles: Sequence[str],
        features: Callable[[Tensor], Tensor] = lambda small: small,
    ) -> list[str]:
        """Concept of the nearest real icon of the wanted style, for each picture.

        Args:
            images: N pictures of any size.
            styles: Style in which each was asked for, N, all in this gallery.
            features: Maps (N, 3, 32, 32) pictures to (N, ...) vectors that are compared by mean
                squared difference; the default compares the pixels themselves.

        Returns:
            N concepts.
        """
        queries = features(shrink(images)).flatten(1)
        known = features(self.images).flatten(1)
        found = [""] * len(images)
        for style in dict.fromkeys(styles):
            rows = self._rows[style]
            asked = [i for i, other in enumerate(styles) if other == style]
            for i, hit in zip(asked, nearest(queries[asked], known[rows]).tolist(), strict=True):
                found[i] = self.icons[rows[hit]].concept
        return found
