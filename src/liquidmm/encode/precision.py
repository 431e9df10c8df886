"""The type that the encoder computes in: the fastest whose codes are those of float32.

Contract: decided once for a run, before any worker starts, on the first pictures of the source, so
that all shards of a folder are made alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from liquidmm.data.readers import Chunk, SourceConfig, read_chunk
from liquidmm.data.records import images_of
from liquidmm.encode.config import EncodeConfig
from liquidmm.encode.images import Pixels, Preparation
from liquidmm.encode.job import TokenizerFile
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.tokenizer import Precision
from liquidmm.runtime import get_logger

PICTURES = 8
"""Pictures that are encoded in two types."""
_TRIES = 64
_FASTEST_FIRST: tuple[Precision, ...] = ("bfloat16", "tf32")


def choose_precision(
    tokenizer: TokenizerFile,
    source: SourceConfig,
    parts: Sequence[Chunk],
    config: EncodeConfig,
    *,
    elsewhere: bool,
) -> Precision:
    """Choose the type, or check the one that was asked for.

    Args:
        tokenizer: The image tokenizer, on a device of this machine; its precision doesn't matter.
        source: What is encoded.
        parts: Its parts.
        config: Which type, and the least agreement.
        elsewhere: Whether other machines will encode, whose devices can't be tried here: then
            `auto` is float32, and tf32 isn't checked.

    Returns:
        The type.

    Raises:
        ConfigError: The type that was asked for gives too many other codes, or needs another
            device.
    """
    wanted = config.precision
    exact = replace(tokenizer, precision="float32")()
    if wanted == "float32" or (wanted == "tf32" and elsewhere):
        return wanted
    if wanted == "auto" and (elsewhere or exact.device.type != "cuda"):
        return "float32"
    found = list(
        islice(_pictures(source, parts, Preparation(config, exact.downsample_factor)), PICTURES)
    )
    if wanted != "auto":
        share = _agreement(replace(tokenizer, precision=wanted), found)
        if share < config.agreement:
            raise ConfigError(
                f"precision: {share:.2%} of the codes in {wanted} are those of float32, less than "
                f"agreement = {config.agreement:g}. Take float32 or lower it."
            )
        return wanted
    for precision in _FASTEST_FIRST:
        share = _agreement(replace(tokenizer, precision=precision), found)
        get_logger(__name__).info(f"{share:.2%} of the codes in {precision} are those of float32")
        if share >= config.agreement:
            return precision
    return "float32"


def _agreement(tokenizer: TokenizerFile, pictures: list[Pixels]) -> float:
    """Measure the share of codes that are those of float32; 1 without pictures."""
    fast = tokenizer()
    shares = [
        fast.agreement(torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2))
        for pixels in pictures
    ]
    return sum(shares) / len(shares) if shares else 1.0


def _pictures(
    source: SourceConfig, parts: Sequence[Chunk], preparation: Preparation
) -> Iterator[Pixels]:
    everything = (entry for part in parts for entry in read_chunk(source, part))
    for entry in islice(everything, _TRIES):
        for picture in images_of(entry.record) if entry.record is not None else ():
            try:
                yield preparation.open(picture, entry.where)
            except DataError:
                continue
