"""What a mixture will give a run: shares, passes and filling, estimated from a sample.

Contract: the sample is a function of the stream's seed alone, so equal runs get equal estimates.
Rows are counted, the rest is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.data.mixture import Source
from liquidmm.data.packing import PackedSequence, PackingConfig, split
from liquidmm.data.stream import TokenStream

_EXAMPLES = 100
"""Examples of each source that are rendered."""
_ROWS = 64
"""Rows that are looked at, at least; they come in whole windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePlan:
    """One source of the mixture."""

    path: Path
    """Folder of shards."""
    task: str
    """What it teaches."""
    rows: int
    """Its rows of the kind that the task needs."""
    share: float
    """Share of the examples."""
    share_of_ids: float
    """Share of the ids; estimate."""
    mean_ids: float
    """Ids of an example; estimate."""
    passes: float
    """How often the run goes through its rows; estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPlan:
    """The data of a run."""

    sources: tuple[SourcePlan, ...]
    """What is trained on."""
    fill: float
    """Share of the positions that are not padding; estimate."""
    labelled: float
    """Share of the positions that carry a label; estimate."""
    length: float
    """Ids of a document, twice the mean that an id sees; estimate."""


def plan_data(
    stream: TokenStream, sources: Sequence[Source], packing: PackingConfig, ids: int
) -> DataPlan:
    """Estimate what a stream will give.

    Args:
        stream: The opened sources; it stays where it is.
        sources: The same sources.
        packing: How its rows are filled.
        ids: Positions of the whole run, padding included.

    Returns:
        The estimates.

    Raises:
        DataError: An example of the sample has a picture and is longer than a row.
    """
    identity = stream.fingerprint()
    rows: list[int] = identity["sizes"]
    shares: list[float] = identity["weights"]
    means = [_mean_ids(stream, place, count, packing) for place, count in enumerate(rows)]
    packed: list[PackedSequence] = []
    for number in range(_ROWS):  # at least one row each
        if len(packed) < _ROWS:
            packed += stream.buffer(number)
    fill = float(np.mean([row.num_tokens for row in packed])) / packing.seq_len
    mean = sum(share * each for share, each in zip(shares, means, strict=True))
    examples = ids * fill / mean
    return DataPlan(
        sources=tuple(
            SourcePlan(
                path=source.path,
                task=source.task,
                rows=count,
                share=share,
                share_of_ids=share * each / mean,
                mean_ids=each,
                passes=examples * share / count,
            )
            for source, count, share, each in zip(sources, rows, shares, means, strict=True)
        ),
        fill=fill,
        labelled=float(np.mean([row.labels != IGNORE_INDEX for row in packed])),
        length=float(2 * np.mean([row.position_ids for row in packed]) + 1),
    )


def _mean_ids(stream: TokenStream, place: int, rows: int, packing: PackingConfig) -> float:
    sizes = []
    for draw in range(min(rows, _EXAMPLES)):
        pieces = split(stream.example(place, draw), packing)  # refuses what fits into no row
        if pieces:
            sizes.append(sum(len(piece.input_ids) for piece in pieces))
    return float(np.mean(sizes)) if sizes else 0.0
