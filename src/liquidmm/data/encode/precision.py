"""The type that the encoder computes in: the fastest whose codes are those of float32.

Contract: decided once for a run, before any worker starts, on the first pictures of the source, so
that all shards of a folder are made alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from liquidmm.data.encode.config import EncodeConfig, EngineConfig
from liquidmm.data.encode.job import TokenizerFile
from liquidmm.data.encode.prepare import Pixels, Preparation
from liquidmm.data.records import pictures_of
from liquidmm.data.sources import Part, SourceConfig, entries
from liquidmm.errors import ConfigError, DataError
from liquidmm.runtime import get_logger
from liquidmm.vision.tokenizer import Precision

PICTURES = 8
"""Pictures that are encoded in two types."""
_TRIES = 64
_FASTEST_FIRST: tuple[Precision, ...] = ("bfloat16", "tf32")


def choose_precision(
    tokenizer: TokenizerFile,
    source: SourceConfig,
    parts: list[Part],
    config: EncodeConfig,
    engine: EngineConfig,
) -> Precision:
    """Choose the type, or check the one that was asked for.

    Args:
        tokenizer: The image tokenizer; its own precision doesn't matter.
        source: What is encoded.
        parts: Its parts.
        config: Which type, and the least agreement.
        engine: Where it is encoded.

    Returns:
        The type.

    Raises:
        ConfigError: The type that was asked for gives too many other codes, or needs another
            device.
    """
    exact = replace(tokenizer, precision="float32")()
    if config.precision == "float32":
        return "float32"
    if config.precision == "auto" and (exact.device.type != "cuda" or engine.kind != "local"):
        return "float32"
    candidates = _FASTEST_FIRST if config.precision == "auto" else (config.precision,)
    found = list(islice(_pictures(source, parts, Preparation(config, exact.factor)), PICTURES))
    for precision in candidates:
        fast = replace(tokenizer, precision=precision)()
        shares = [
            fast.agreement(torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2))
            for pixels in found
        ]
        share = sum(shares) / max(1, len(shares))
        if share >= config.agreement or not found:
            get_logger(__name__).info(
                f"encoding in {precision}: {share:.2%} of the codes of {len(found)} pictures are "
                "those of float32"
            )
            return precision
        if config.precision != "auto":
            raise ConfigError(
                f"precision: {share:.2%} of the codes in {precision} are those of float32, less "
                f"than agreement = {config.agreement:g}. Take float32 or lower it."
            )
    return "float32"


def _pictures(
    source: SourceConfig, parts: list[Part], preparation: Preparation
) -> Iterator[Pixels]:
    everything = (entry for part in parts for entry in entries(source, part))
    for entry in islice(everything, _TRIES):
        for picture in pictures_of(entry.record) if entry.record is not None else ():
            try:
                yield preparation.open(picture, entry.where)
            except DataError:
                continue
