"""The real icons: seeded samples, and search for the nearest icon. Legend: N images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from liquidmm.errors import DataError
from liquidmm.evaluate.metrics import nearest, words
from liquidmm.icons.io import REBUILD, read_rows
from liquidmm.image_tokenizer.images import open_image, to_tensor

SPLITS = ("train", "held_out_pairs", "held_out_concepts")
"""Splits: trained pairs, unseen (concept, style) pairs of trained concepts, and unseen concepts."""

SIDE = 32
"""Width and height in pixels at which images are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Icon:
    """One real icon."""

    key: str
    """Unique name in the dataset."""
    image: Path
    """Image file."""
    concept: str
    """Concept of the icon, the same in every style."""
    style: str
    """Icon set that contains it."""
    captions: tuple[str, ...]
    """At least one caption; the first is canonical."""
    name: str
    """Plain English name of the concept."""
    split: str
    """One of ``SPLITS``."""


def read_icons(folder: Path) -> list[Icon]:
    """Read the icons of a data folder, in file order.

    Raises:
        DataError: The folder contains no icons, or a line is not an icon record.
    """
    path = folder / "records.jsonl"
    icons = [_icon(row, where, folder) for where, row in read_rows(path)]
    if not icons:
        raise DataError(f"{path}: contains no icons. {REBUILD}")
    return icons


def sample(icons: Sequence[Icon], split: str, limit: int, seed: int) -> list[Icon]:
    """Sample icons of a split without replacement, one per (concept, style) pair.

    Args:
        icons: All icons.
        split: One of ``SPLITS``.
        limit: Maximum number of icons.
        seed: Random seed.

    Raises:
        DataError: The split is empty.
    """
    pairs: dict[tuple[str, str], Icon] = {}
    for icon in icons:
        if icon.split == split:
            pairs.setdefault((icon.concept, icon.style), icon)
    if not pairs:
        raise DataError(f"icons: no icon has split {split!r}. {REBUILD}")
    pool = list(pairs.values())
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(pool))
    return [pool[place] for place in order[:limit]]


def concept_names(icons: Iterable[Icon]) -> Mapping[str, tuple[str, ...]]:
    """Return the words of each non-empty concept name, for ``metrics.named``."""
    names = {icon.concept: words(icon.name) for icon in icons}
    return {concept: parts for concept, parts in names.items() if parts}


def shrink(images: Iterable[Image.Image], side: int = SIDE) -> Tensor:
    """Resize images with a box filter so that images of different sizes can be compared.

    Returns:
        (N, 3, side, side) float32 in [-1, 1].
    """
    small = [
        to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BOX))
        for image in images
    ]
    return torch.stack(small) if small else torch.empty(0, 3, side, side)


class Gallery:
    """The real icons of some styles, searchable by style.

    Attributes:
        icons: The icons, in the given order.
        images: Their images, (N, 3, 32, 32) float32 in [-1, 1].
    """

    def __init__(self, icons: Sequence[Icon], styles: Iterable[str] | None = None) -> None:
        """Open the icons of the given styles, or of all styles.

        Raises:
            DataError: An image is missing or damaged.
        """
        wanted = None if styles is None else set(styles)
        self.icons = [icon for icon in icons if wanted is None or icon.style in wanted]
        self.images = shrink(open_image(icon.image) for icon in self.icons)
        self._by_style: dict[str, list[int]] = {}
        for index, icon in enumerate(self.icons):
            self._by_style.setdefault(icon.style, []).append(index)

    def chance(self, style: str) -> float:
        """Return the accuracy of random guessing: 1 divided by the style's number of concepts."""
        return 1.0 / len({self.icons[index].concept for index in self._by_style[style]})

    def nearest_concepts(
        self,
        images: Sequence[Image.Image],
        styles: Sequence[str],
        features: Callable[[Tensor], Tensor] = lambda small: small,
    ) -> list[str]:
        """Find the concept of the nearest real icon of the requested style, for each image.

        Args:
            images: N images of any size.
            styles: The N requested styles, all in this gallery.
            features: Maps (N, 3, 32, 32) images to (N, ...) vectors, which are compared by mean
                squared difference; the default compares pixels.
        """
        queries = features(shrink(images)).flatten(1)
        known = features(self.images).flatten(1)
        found = [""] * len(images)
        for style in dict.fromkeys(styles):
            candidates = self._by_style[style]
            asked = [i for i, other in enumerate(styles) if other == style]
            for i, hit in zip(
                asked, nearest(queries[asked], known[candidates]).tolist(), strict=True
            ):
                found[i] = self.icons[candidates[hit]].concept
        return found


def _icon(row: Mapping[str, Any], where: str, folder: Path) -> Icon:
    try:
        icon = Icon(
            key=str(row["key"]),
            image=folder / row["image"],
            concept=str(row["concept"]),
            style=str(row["style"]),
            captions=tuple(str(caption) for caption in row["captions"]),
            name=str(row.get("name") or row["concept"]),
            split=str(row["split"]),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: is not an icon record ({error!r}). {REBUILD}") from error
    if icon.split not in SPLITS or not icon.captions:
        raise DataError(
            f"{where}: expected a known split and captions, got split {icon.split!r} and "
            f"{len(icon.captions)} captions. {REBUILD}"
        )
    return icon
