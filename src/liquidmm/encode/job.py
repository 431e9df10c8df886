"""One step, the same on every engine: a task takes its share of the missing shards and writes them.

Contract: a `Job` is plain values that travel to any process or machine. A shard that is there is
left alone, so a task can be run again, and by two processes at once. A process loads the tokenizer
once.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from liquidmm.data.manifest import Provenance
from liquidmm.data.readers import Chunk, SourceConfig, read_chunk
from liquidmm.data.shard_file import read_info, shard_name, write_shard
from liquidmm.data.shard_folder import finish, tally
from liquidmm.encode.config import EncodeConfig
from liquidmm.encode.images import Preparation
from liquidmm.encode.part import PartEncoder
from liquidmm.encode.progress import Limit, Progress, StoppedError, TaskProgress
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.image_tokenizer.tokenizer import (
    ImageTokenizer,
    Precision,
    VQGANTokenizer,
    load_image_tokenizer,
)
from liquidmm.runtime import resolve_device, tune_cpu_allocator


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFile:
    """An image tokenizer that each process loads for itself; called, it gives the tokenizer."""

    path: Path
    """Folder or file of the image tokenizer."""
    device: str | None = None
    """Where it encodes; None takes the best there is."""
    precision: Precision = "float32"
    """Type that its encoder computes in."""

    def __call__(self) -> VQGANTokenizer:
        """Load it, or give the one that this process has loaded."""
        return _loaded(self)


@cache
def _loaded(file: TokenizerFile) -> VQGANTokenizer:
    tokenizer = load_image_tokenizer(file.path).to(resolve_device(file.device))
    if file.precision == "tf32" and tokenizer.device.type != "cuda":
        raise ConfigError("precision: tf32 needs a CUDA device. Take float32.")
    tokenizer.precision = file.precision
    return tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that a worker has to know."""

    source: SourceConfig
    """What is encoded."""
    numbers: tuple[int, ...]
    """Numbers of the shards that were missing."""
    missing: tuple[Chunk, ...]
    """Their parts of the source."""
    parts: int
    """Number of all parts."""
    origin: Provenance
    """What the rows are made from."""
    out: Path
    """Folder for the shards."""
    tokenizer: Callable[[], ImageTokenizer]
    """Gives the tokenizer; pickled where other processes encode."""
    config: EncodeConfig
    """How pictures are prepared."""
    limit: Limit
    """When too many entries were refused."""
    threads: int
    """Cores that a worker without a GPU computes on."""
    decoders: int
    """Threads of a worker that open and prepare pictures."""
    progress: Path
    """Folder of the counts."""
    finishes: bool
    """Whether the task that writes the last shard also writes the manifest."""


def work(job: Job, task: int, tasks: int) -> None:
    """Write the shards of one task.

    What goes wrong with the source, the tokenizer or the disk ends all tasks: the reason is in the
    folder of the counts, and this returns.

    Args:
        job: The job.
        task: Number of the task, from 0.
        tasks: Number of tasks.
    """
    progress = Progress(job.progress)
    if progress.error() is not None:
        return
    counts = TaskProgress(progress, task, job.limit)
    try:
        with _threads(job.threads), warnings.catch_warnings():
            # what Pillow can read in spite of a warning is good, what it can't is refused
            warnings.filterwarnings("ignore", module="PIL")
            _work(job, counts, range(task, len(job.numbers), tasks))
        if job.finishes and all((job.out / shard_name(n)).exists() for n in range(job.parts)):
            _finish(job, progress)
    except LiquidError as error:
        progress.stop(error)
    except StoppedError:
        pass


def _finish(job: Job, progress: Progress) -> None:
    totals = tally(job.out)
    error = job.limit.broken(totals, progress.counts().problem)
    if error is not None:
        raise error
    if totals.records + totals.refused:  # the process that began tells of an empty source
        finish(job.out, job.origin, job.parts)


def _work(job: Job, counts: TaskProgress, places: Sequence[int]) -> None:
    tune_cpu_allocator()
    tokenizer = job.tokenizer()
    preparation = Preparation(job.config, tokenizer.downsample_factor)
    source = ", ".join(job.source.paths)
    with PartEncoder(tokenizer, preparation, job.config.batch_size, job.decoders) as encoder:
        for place in places:
            part, number = job.missing[place], job.numbers[place]
            path = job.out / shard_name(number)
            if not path.exists():
                found = read_chunk(job.source, part)
                rows, refusals = encoder.encode(found, source, counts.tell)
                size = job.origin.codebook_size
                write_shard(job.out, number, part.name, rows, refusals, size)
            held = read_info(path).tallies
            counts.finish_part(held.records + held.refused, held.refused)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
