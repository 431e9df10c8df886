"""Which example comes next: order, shares and random choices as functions of a number, on grain.

Contract: draw n of a source is a pure function of (seed, place of the source, n): each pass over
its rows has an order of its own, worked out and not remembered, and each draw a generator for the
random choices of rendering. Draw n of the mixture is a draw of one source; which one follows from n
and the weights alone, and after any number of draws no source is two draws away from its share.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from math import lcm
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from absl import logging as absl_logging

from liquidmm.data.examples import KINDS, TASKS, Example, ExampleBuilder, Task
from liquidmm.data.shard_file import Row
from liquidmm.data.shards import Rows, Shards, read_shards
from liquidmm.errors import ConfigError, DataError, suggest


@contextlib.contextmanager
def _as_if_with_jax() -> Iterator[None]:
    """Leave out the warning that jax's profiler is not there; grain doesn't need it."""

    def keep(record: logging.LogRecord) -> bool:
        return "jax profiler" not in record.getMessage()

    logger, root, last = absl_logging.get_absl_logger(), logging.getLogger(), logging.lastResort
    logger.addFilter(keep)
    # It would close the stderr of now, should logging be set up anew while stderr is another one.
    absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
    # A root logger without handlers gets one from absl, which is not for a library to decide.
    if last is not None and not root.handlers:
        root.addHandler(last)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        if last is not None:
            root.removeHandler(last)


with _as_if_with_jax():
    import grain

Draws: TypeAlias = "grain.MapDataset[Example]"

ORDER, CHOICES, WINDOW = range(3)
"""First number of the seeds of a source's order, of a draw's choices and of a window's rows."""

_FEW = 4096
"""Rows whose order is remembered: grain's shuffle takes the longer, the fewer there are."""

_MANY = 2**62
"""Draws of a mixture, which has no end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of shards, rendered as one task."""

    path: Path
    """Folder that `liquid encode` wrote."""
    task: Task
    """What its rows teach; rows of a kind that the task does not use are left out."""
    weight: float = 1.0
    """Share of the examples, relative to the weights of the other sources; shares, ratios and
    counts will do. 0 draws nothing from it."""
    count: int = 0
    """Rows that are drawn from: a fixed random choice of so many, the same for every seed; a larger
    one holds the smaller ones. 0 takes all."""

    reverse: float = 0.0
    """Share of the draws of `text_to_image` that teach `image_to_text` instead (the paper: 0.2), 0
    to 1. A row comes once a pass, one way or the other."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.task not in TASKS:
            raise ConfigError(f"task: '{self.task}' is unknown.{suggest(self.task, TASKS)}")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight: is {self.weight}. Give 0 or more, or leave it out.")
        if self.count < 0:
            raise ConfigError(f"count: is {self.count}. Give 1 or more, or 0 for all rows.")
        if not 0 <= self.reverse <= 1:
            raise ConfigError(f"reverse: is {self.reverse}. Give a share from 0 to 1.")
        if self.reverse and self.task != "text_to_image":
            raise ConfigError(
                f"reverse: {self.task} can't be turned round. Set it where task is text_to_image."
            )


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse sources of which nothing can be drawn.

    Raises:
        ConfigError: There are none, or their weights sum to nothing.
    """
    if not sources:
        raise ConfigError("sources: is empty. Name at least one folder of shards.")
    if not any(source.weight for source in sources):
        raise ConfigError("sources: their weights sum to 0. Give one of them a weight above 0.")


def open_sources(
    sources: Sequence[Source], renderer: ExampleBuilder, seed: int, fingerprint: str | None
) -> list[tuple[int, Draws]]:
    """Open the folders of some sources.

    Args:
        sources: What to draw from.
        renderer: Lays the rows out.
        seed: Decides order and random choices, 0 or more.
        fingerprint: Fingerprint of the checkpoint's image tokenizer; None does not compare.

    Returns:
        For each source the number of rows that it draws from, and its endless draws.

    Raises:
        DataError: A folder is not readable, was encoded with another tokenizer, or has no row, or
            too few, for a source.
    """
    codebook_size = renderer.sequences.vocabulary.codebook_size
    opened = {path: read_shards(path) for path in dict.fromkeys(each.path for each in sources)}
    for path, shards in opened.items():
        _check_origin(path, shards, codebook_size, fingerprint)
    found = []
    for place, source in enumerate(sources):
        rows = _rows(source, opened[source.path])
        count = source.count or len(rows)
        drawn = grain.MapDataset.source(_Drawn(rows, count, (ORDER, seed, place)))
        render = partial(_render, renderer, source, (CHOICES, seed, place))
        found.append((count, drawn.map_with_index(render)))
    return found


def mix(draws: Sequence[Draws], weights: Sequence[float]) -> Draws:
    """Mix draws by weight.

    Args:
        draws: Endless draws of each source.
        weights: Their weights, 0 or more and not all 0.

    Returns:
        The endless draws of the mixture.
    """
    return grain.MapDataset.select_from_datasets(list(draws), _Shares(weights))


class _Drawn:
    """The rows of a source in the order in which they are drawn, pass after pass."""

    def __init__(self, rows: Rows, count: int, seeds: tuple[int, ...]) -> None:
        self._rows = rows
        self._count = count
        self._seeds = seeds

    def __len__(self) -> int:
        return _MANY

    def __getitem__(self, draw: int) -> Row:
        turn, place = divmod(draw, self._count)
        place = _shuffled(place, self._count, (*self._seeds, turn))
        if self._count < len(self._rows):
            place = _shuffled(place, len(self._rows), (ORDER,))
        return self._rows[place]


class _Shares(grain.transforms.DatasetSelectionMap):  # type: ignore[misc]
    """Which source draw n comes from, and which of its draws it is.

    The sources are peeled off one by one. Of the first n draws, the first source takes its share,
    rounded up; of those that are left, the next one takes its share of what is left; and so on. The
    weights are taken as exact decimal fractions, so that nothing drifts.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        fractions = [Fraction(str(weight)) for weight in weights]
        whole = lcm(*(fraction.denominator for fraction in fractions))
        self._parts = [int(fraction * whole) for fraction in fractions]

    def __len__(self) -> int:
        return _MANY

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after, left = int(index), int(index) + 1, sum(self._parts)
        for place, part in enumerate(self._parts):
            rest_before = before * (left - part) // left
            rest_after = after * (left - part) // left
            if rest_before == rest_after:
                return place, before - rest_before
            before, after, left = rest_before, rest_after, left - part
        raise AssertionError("a draw belongs to some source")


def _rows(source: Source, shards: Shards) -> Rows:
    kind = KINDS[source.task]
    rows = shards.of_kind(kind)
    if not len(rows):
        raise DataError(
            f"{source.path}: no rows of kind {kind}, which {source.task} needs. Remove the source "
            "or choose another task."
        )
    if source.count > len(rows):
        raise DataError(
            f"{source.path}: has {len(rows)} rows of kind {kind}, count asks for {source.count}. "
            "Lower it, or leave it out to take all."
        )
    return rows


def _shuffled(place: int, length: int, seeds: tuple[int, ...]) -> int:
    """Say which of some numbers stands at a place of a shuffled order, without the order itself."""
    if length < _FEW:
        return int(_permutation(length, seeds)[place])
    shuffled: int = grain.experimental.index_shuffle(
        place, max_index=length - 1, seed=_seed(seeds), rounds=4
    )
    return shuffled


@lru_cache(maxsize=64)
def _permutation(length: int, seeds: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seeds).permutation(length)


@lru_cache(maxsize=64)
def _seed(seeds: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _render(
    renderer: ExampleBuilder, source: Source, seeds: tuple[int, ...], draw: int, row: Row
) -> Example:
    rng = np.random.default_rng([*seeds, draw])
    turned = source.reverse and rng.random() < source.reverse
    return renderer.render(row, "image_to_text" if turned else source.task, rng)


def _check_origin(path: Path, shards: Shards, codebook_size: int, fingerprint: str | None) -> None:
    origin = shards.manifest.origin
    if origin.codebook_size != codebook_size:
        raise DataError(
            f"{path}: was encoded with {origin.codebook_size} codes, the checkpoint has "
            f"{codebook_size}. Encode with the checkpoint's image tokenizer."
        )
    if fingerprint is not None and origin.fingerprint != fingerprint:
        raise DataError(
            f"{path}: was encoded with the image tokenizer {origin.fingerprint}, the checkpoint "
            f"has {fingerprint}. Encode with the checkpoint's image tokenizer."
        )
