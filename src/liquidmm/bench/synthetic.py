"""Folders of shards of made-up records, as large as a measurement of loading needs them.

Contract: equal arguments make equal rows. Codes are random, texts are random words of a fixed list;
lengths are those of the paper's data. Large folders repeat one shard as files of their own, so that
as many bytes lie on the disk, and as many files are opened, as real data would take.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liquidmm.data.manifest import Provenance
from liquidmm.data.shard_file import Row, shard_name, write_shard
from liquidmm.data.shard_folder import begin, finish
from liquidmm.errors import LiquidError

CODEBOOK = 2048
"""Codes of the default model's image tokenizer."""
_TEXT = """
the a of and in to is it that on with for as was at by from this be are an or has its not one light
water house tree river mountain city street table window garden horse bird cloud stone small large
old young red green blue yellow white black bright dark quiet round narrow wooden standing running
sitting falling shining growing holding showing under over behind between morning evening summer
winter people children hands face colour paper glass metal painting
"""
WORDS = tuple(_TEXT.split())

_MARGIN = 2**30
"""Bytes that are left free on the disk."""


def pictures(count: int, side: int, words: int, seed: int = 0) -> list[Row]:
    """Make pictures with captions.

    Args:
        count: How many.
        side: Codes of a side.
        words: Words of a caption.
        seed: Decides codes and captions.

    Returns:
        Rows of kind image_text.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODEBOOK, (count, side, side), dtype=np.uint16)
    chosen = rng.integers(0, len(WORDS), (count, words)).tolist()
    return [
        Row(
            kind="image_text",
            key=f"{number:08d}",
            source="synthetic",
            license="CC0-1.0",
            captions=(" ".join(WORDS[place] for place in places),),
            pictures=(grid,),
        )
        for number, (grid, places) in enumerate(zip(codes, chosen, strict=True))
    ]


def texts(count: int, words: int, seed: int = 0) -> list[Row]:
    """Make documents whose lengths are log-normal.

    Args:
        count: How many.
        words: Words of one, on average.
        seed: Decides lengths and words.

    Returns:
        Rows of kind text.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(words) - 0.5, 1.0, count).astype(int) + 1
    return [
        Row(
            kind="text",
            key=f"{number:08d}",
            source="synthetic",
            license="CC0-1.0",
            text=" ".join(WORDS[place] for place in rng.integers(0, len(WORDS), length)),
        )
        for number, length in enumerate(lengths)
    ]


def write_synthetic(folder: Path, rows: Sequence[Row], copies: int = 1) -> Path:
    """Write a folder of shards that all hold the same rows.

    Args:
        folder: Folder to make.
        rows: Rows of a shard.
        copies: Number of shards.

    Returns:
        The folder.

    Raises:
        LiquidError: The disk has no room for it, with 1 GiB to spare.
    """
    origin = Provenance(
        fingerprint="synthetic",
        codebook_size=CODEBOOK,
        downsample_factor=8,
        source="synthetic",
        source_digest="synthetic",
        settings={},
    )
    begin(folder, origin, copies)
    first = write_shard(folder, 0, "made up", rows, [], CODEBOOK)
    needed, free = first.stat().st_size * copies + _MARGIN, shutil.disk_usage(folder).free
    if needed > free:
        raise LiquidError(
            f"{folder}: needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free. Name a folder "
            "with more room (--scratch)."
        )
    for number in range(1, copies):
        shutil.copyfile(first, folder / shard_name(number))
    finish(folder, origin, copies)
    return folder
