"""A task: a subset of the missing shards, written by one process.

An `EncodeTask` contains plain values and can be sent to any process or machine. Existing shards are
not changed, so a task can run again, even in two processes at once. A process loads the image
tokenizer once.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from liquidmm.data.manifest import Provenance
from liquidmm.data.readers import Chunk, SourceConfig, read_chunk
from liquidmm.data.shard_writer import shard_name, write_shard
from liquidmm.data.shards import read_info
from liquidmm.encode.chunk_encoder import ChunkEncoder
from liquidmm.encode.config import EncoderConfig
from liquidmm.encode.images import ImageTransform
from liquidmm.encode.progress import Counts, ErrorBudget, Progress, StoppedError, TaskProgress
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.image_tokenizer.tokenizer import (
    ImageTokenizer,
    Precision,
    VQGANTokenizer,
    load_image_tokenizer,
)
from liquidmm.runtime import resolve_device, tune_cpu_allocator


class WorkerKilledError(LiquidError):
    """A worker was killed, usually because memory ran out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFile:
    """Callable that returns an image tokenizer, loaded once per process."""

    path: Path
    """Folder or file of the image tokenizer."""
    device: str | None = None
    """Device; None uses the fastest available."""
    precision: Precision = "float32"
    """Dtype of the encoder network."""

    def __call__(self) -> VQGANTokenizer:
        """Return the image tokenizer."""
        return _load(self)


@cache
def _load(file: TokenizerFile) -> VQGANTokenizer:
    tokenizer = load_image_tokenizer(file.path).to(resolve_device(file.device))
    if file.precision == "tf32" and tokenizer.device.type != "cuda":
        raise ConfigError("precision: tf32 needs a CUDA device. Use float32.")
    tokenizer.precision = file.precision
    return tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeTask:
    """Everything a worker needs."""

    source: SourceConfig
    shards: tuple[tuple[int, Chunk], ...]
    """Number and chunk of each shard to write."""
    provenance: Provenance
    out: Path
    tokenizer: Callable[[], ImageTokenizer]
    """Returns the image tokenizer; it is pickled if other processes encode."""
    config: EncoderConfig
    budget: ErrorBudget
    before: Counts
    """Counts of the shards that already existed."""
    threads: int
    """CPU cores per worker without a GPU."""
    decode_threads: int
    """Threads per worker that open images."""
    progress: Path
    """Folder of the progress counters."""


def run_task(task: EncodeTask, index: int, num_tasks: int) -> None:
    """Write every ``num_tasks``-th shard, starting with shard ``index`` in the list.

    Raises:
        StoppedError: Another worker set the stop flag.
        LiquidError: The source, the image tokenizer or the disk failed, or too many records were
            rejected.
    """
    counts = TaskProgress(Progress(task.progress), index, task.budget, task.before)
    tune_cpu_allocator()
    with _torch_threads(task.threads), warnings.catch_warnings():
        # accept images that Pillow reads with a warning
        warnings.filterwarnings("ignore", module="PIL")
        tokenizer = task.tokenizer()
        transform = ImageTransform(task.config, tokenizer.downsample_factor)
        source = ", ".join(task.source.paths)
        batch_size, threads = task.config.batch_size, task.decode_threads
        with ChunkEncoder(tokenizer, transform, batch_size, threads) as encoder:
            for number, chunk in task.shards[index::num_tasks]:
                path = task.out / shard_name(number)
                if not path.exists():
                    records = read_chunk(task.source, chunk)
                    samples, rejected = encoder.encode(records, source, counts.update)
                    codebook_size = task.provenance.codebook_size
                    write_shard(task.out, number, chunk.name, samples, rejected, codebook_size)
                counts.finish_shard(read_info(path).stats)


def run_or_stop(task: EncodeTask, index: int, num_tasks: int) -> None:
    """Run one of several tasks; an error is not raised but stops all of them with the stop flag."""
    progress = Progress(task.progress)
    if progress.error() is not None:
        return
    try:
        run_task(task, index, num_tasks)
    except LiquidError as error:
        progress.stop(error)
    except StoppedError:
        pass


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
