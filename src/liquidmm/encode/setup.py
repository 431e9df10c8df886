"""The start of a run: open the source and the image tokenizer, and check the configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from liquidmm.data.manifest import REJECTED, Provenance
from liquidmm.data.readers import Chunk, SourceConfig, digest, list_chunks, read_chunk
from liquidmm.data.records import images_of
from liquidmm.encode.config import EncoderConfig, WorkerConfig, settings
from liquidmm.encode.images import ImageTransform, Pixels
from liquidmm.encode.progress import Counts, ErrorBudget
from liquidmm.encode.worker import EncodeTask, TokenizerFile
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

WORK_FOLDER = ".encode"
"""Folder inside the output folder for counters and log files; deleted when all shards exist."""

_MIN_RECORDS = 1000
"""Minimum number of records for checking the error rate."""
_CHECKED_IMAGES = 8
"""Number of images that are encoded in two dtypes to compare their codes."""
_CHECKED_RECORDS = 64
"""Number of records to search for these images."""


def open_task(
    source: SourceConfig,
    tokenizer: Callable[[], ImageTokenizer],
    out: Path,
    config: EncoderConfig,
    workers: WorkerConfig,
    *,
    elsewhere: bool = False,
) -> tuple[EncodeTask, torch.device]:
    """Open the source and the image tokenizer, and check that they fit the configuration.

    Arguments and errors are those of `liquidmm.encode.encode`. With ``elsewhere``, other machines
    will encode, since this one may have no GPU.

    Returns:
        A task with all shards in the folder, and the device of the image tokenizer.
    """
    here = tokenizer
    if isinstance(here, TokenizerFile) and elsewhere:
        here = replace(here, device="cpu")
    opened = here()
    transform = ImageTransform(config, opened.downsample_factor)
    if opened.codebook_size > 2**16:
        raise ConfigError(
            f"tokenizer: expected at most 65536 codes (16 bits), got {opened.codebook_size}."
        )
    chunks = list_chunks(source, config.samples_per_shard)
    if isinstance(here, TokenizerFile) and isinstance(tokenizer, TokenizerFile):
        tokenizer = replace(tokenizer, precision=config.precision)
        if not (config.precision == "tf32" and elsewhere):
            images = islice(_first_images(source, chunks, transform), _CHECKED_IMAGES)
            _check_precision(replace(here, precision=config.precision), config, images)
    else:
        config = replace(config, precision="float32")
    shards = tuple(enumerate(chunks))
    task = EncodeTask(
        source=source,
        shards=shards,
        provenance=_provenance(source, opened, config),
        out=out,
        tokenizer=tokenizer,
        config=config,
        budget=ErrorBudget(
            max_rate=config.max_error_rate,
            min_records=min(_MIN_RECORDS, num_records(shards) or _MIN_RECORDS),
            rejected_file=out / REJECTED,
        ),
        before=Counts(),
        threads=workers.threads,
        decode_threads=max(1, workers.decode_threads),
        progress=out / WORK_FOLDER / "counts",
    )
    return task, opened.device


def num_records(shards: Sequence[tuple[int, Chunk]]) -> int | None:
    """Return the number of records in the source; None if that is only known after reading it."""
    counts = [chunk.count for _, chunk in shards]
    return None if None in counts else sum(count for count in counts if count)


def _provenance(
    source: SourceConfig, tokenizer: ImageTokenizer, config: EncoderConfig
) -> Provenance:
    return Provenance(
        fingerprint=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        downsample_factor=tokenizer.downsample_factor,
        source=", ".join(source.paths),
        source_digest=digest(source),
        settings=settings(source, config),
    )


def _check_precision(
    tokenizer: TokenizerFile, config: EncoderConfig, images: Iterator[Pixels]
) -> None:
    """Compare the codes of some images with those in float32."""
    if config.precision == "float32":
        return
    opened = tokenizer()
    shares = [
        opened.code_match(torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2))
        for pixels in images
    ]
    share = sum(shares) / len(shares) if shares else 1.0
    if share < config.min_code_match:
        raise ConfigError(
            f"precision: {share:.2%} of the codes in {config.precision} equal those of float32, "
            f"less than min_code_match = {config.min_code_match:g}. Use float32 or lower it."
        )


def _first_images(
    source: SourceConfig, chunks: Sequence[Chunk], transform: ImageTransform
) -> Iterator[Pixels]:
    records = (parsed for chunk in chunks for parsed in read_chunk(source, chunk))
    for parsed in islice(records, _CHECKED_RECORDS):
        for image in images_of(parsed.record) if parsed.record is not None else ():
            with contextlib.suppress(DataError):
                yield transform.open(image, parsed.where)
