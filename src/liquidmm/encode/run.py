"""Encoding runs: open the source, write the missing shards, finish the folder.

Shard n is always made from chunk n of the source. A second run writes only missing shards, a
finished folder does not change, and the bytes are the same for any number of workers or tasks.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from liquidmm.data.manifest import MANIFEST, Manifest, read_manifest
from liquidmm.data.readers import SourceConfig
from liquidmm.data.shard_writer import begin, count_records, finish, shard_name, write_rejected
from liquidmm.encode.config import EncoderConfig, RayConfig, WorkerConfig
from liquidmm.encode.local import run_processes
from liquidmm.encode.on_ray import run_on_ray
from liquidmm.encode.progress import Counts, Progress, progress_bar
from liquidmm.encode.setup import WORK_FOLDER, num_records, open_task
from liquidmm.encode.worker import EncodeTask, TokenizerFile, WorkerKilledError, run_task
from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer
from liquidmm.runtime import cpu_count, get_logger

_MAX_DECODE_THREADS = 16
_GPU_DECODE_THREADS = 8
"""Threads per Ray worker with a GPU; the number of CPU cores on its machine is unknown here."""


def encode(
    source: SourceConfig,
    tokenizer: Callable[[], ImageTokenizer],
    out: Path,
    config: EncoderConfig | None = None,
    workers: WorkerConfig | None = None,
    ray: RayConfig | None = None,
) -> Manifest:
    """Encode a source into a folder of shards, or finish what an earlier run started.

    Args:
        source: The source of the records.
        tokenizer: Returns the image tokenizer: a `TokenizerFile`, or any callable. Other callables
            run in this process, or are pickled if ``workers.num`` is larger than 1.
        out: Output folder for the shards, the manifest and the rejected records.
        config: Images and shards.
        workers: Processes and threads.
        ray: Run on this Ray cluster instead of this machine.

    Returns:
        The manifest of the finished folder.

    Raises:
        ConfigError: The sizes do not fit the tokenizer, its codes do not fit 16 bits, a setting of
            the source is invalid, or there is no Ray cluster.
        DataError: The source is missing or empty, the folder belongs to other settings, or too many
            records were rejected.
        LiquidError: The folder cannot be written, a URL cannot be read right now, or a worker was
            killed.
    """
    workers = workers or WorkerConfig()
    if not isinstance(tokenizer, TokenizerFile) and ray is None and not workers.num:
        workers = replace(workers, num=1)
    config = config or EncoderConfig()
    task, device = open_task(source, tokenizer, out, config, workers, elsewhere=ray is not None)
    missing = begin(out, task.provenance, len(task.shards))
    while missing:
        missing = _write_shards(task, missing, device, workers, ray)
    return finish_folder(task)


def encode_task(
    source: SourceConfig,
    tokenizer: Callable[[], ImageTokenizer],
    out: Path,
    index: int,
    num_tasks: int,
    config: EncoderConfig | None = None,
    workers: WorkerConfig | None = None,
) -> Manifest:
    """Write the shards of one of several tasks, which any launcher can start and repeat.

    The task runs in this process. The task that writes the last missing shard finishes the folder.
    All tasks need the same arguments, which are those of `encode`, except for ``index``, from 0;
    ``workers.num`` is ignored.

    Returns:
        The manifest, which is complete if all shards exist.

    Raises:
        ConfigError: As for `encode`, or ``index`` is out of range.
        DataError: As for `encode`; the records of all running tasks count.
        LiquidError: As for `encode`.
    """
    if not 0 <= index < num_tasks:
        raise ConfigError(f"task: expected a number from 0 to {num_tasks - 1}, got {index}.")
    workers = replace(workers or WorkerConfig(), num=1)
    task, device = open_task(source, tokenizer, out, config or EncoderConfig(), workers)
    task = replace(
        task,
        decode_threads=num_decode_threads(workers, device, 1),
        progress=out / WORK_FOLDER / f"tasks-{num_tasks}",
    )
    num_shards = len(task.shards)
    if begin(out, task.provenance, num_shards):
        progress, total = Progress(task.progress), num_records(task.shards)
        try:
            with progress_bar(progress, Counts(), total, num_shards):
                run_task(task, index, num_tasks)
        except LiquidError:
            write_rejected(out)
            raise
        if not all((out / shard_name(number)).exists() for number in range(num_shards)):
            return read_manifest(out)
    return finish_folder(task)


def finish_folder(task: EncodeTask) -> Manifest:
    """Check the folder of a task whose shards all exist, and write its manifest.

    Raises:
        DataError: The folder has no records, or too many were rejected.
    """
    if not read_manifest(task.out).complete:
        _check_totals(task)
    manifest = finish(task.out, task.provenance, len(task.shards))
    shutil.rmtree(task.out / WORK_FOLDER, ignore_errors=True)
    return manifest


def check_budget(task: EncodeTask, counts: Counts, min_records: int) -> None:
    """Check the fraction of rejected records; if too large, list them and raise a `DataError`."""
    try:
        replace(task.budget, min_records=min_records).check(counts)
    except DataError:
        write_rejected(task.out)
        raise


def _write_shards(
    task: EncodeTask,
    missing: list[int],
    device: torch.device,
    workers: WorkerConfig,
    ray: RayConfig | None,
) -> list[int]:
    """Start the workers once; return the numbers of the shards that are still missing."""
    num_shards = len(task.shards)
    done = num_shards - len(missing)
    before = replace(Counts.of(count_records(task.out)), shards=done)
    if ray is not None:
        count = workers.num
        decode_threads = workers.decode_threads or (_GPU_DECODE_THREADS if ray.gpus else 1)
    else:
        count = num_workers(workers, device, len(missing))
        decode_threads = num_decode_threads(workers, device, count)
    attempt = replace(
        task,
        shards=tuple(task.shards[number] for number in missing),
        before=before,
        decode_threads=decode_threads,
    )
    progress = Progress(task.progress)
    progress.clear()
    killed: WorkerKilledError | None = None
    try:
        with progress_bar(progress, before, num_records(task.shards), num_shards):
            if ray is not None:
                run_on_ray(attempt, ray, count)
            else:
                run_processes(attempt, count)
    except WorkerKilledError as error:
        killed = error
    left = begin(task.out, task.provenance, num_shards)
    stopped = killed or progress.error()
    if stopped is None:
        return left
    if killed is not None and len(left) < len(missing):
        get_logger(__name__).warning(f"{killed} Continuing with {len(left)} missing shards.")
        return left
    write_rejected(task.out)
    raise stopped


def num_workers(workers: WorkerConfig, device: torch.device, num_shards: int) -> int:
    """Return the number of processes on this machine: at most one per missing shard."""
    wanted = workers.num
    if not wanted and device.type == "cpu":
        wanted = max(1, cpu_count() // workers.threads)
    elif not wanted:
        every_gpu = device.type == "cuda" and device.index is None
        wanted = torch.cuda.device_count() if every_gpu else 1
    return min(wanted, num_shards)


def num_decode_threads(workers: WorkerConfig, device: torch.device, num_workers: int) -> int:
    """Return the number of threads that open images in each of the processes."""
    if workers.decode_threads or device.type == "cpu":
        return workers.decode_threads or 1
    return max(1, min(_MAX_DECODE_THREADS, cpu_count() // num_workers))


def _check_totals(task: EncodeTask) -> None:
    counts = Counts.of(count_records(task.out), Progress(task.progress).counts().problem)
    if not counts.records:
        for number, _ in task.shards:
            (task.out / shard_name(number)).unlink(missing_ok=True)
        (task.out / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(task.out / WORK_FOLDER, ignore_errors=True)
        with contextlib.suppress(OSError):  # the folder contains something else
            task.out.rmdir()
        splits = ", ".join(task.source.splits)
        what = f"no records of the splits {splits}" if splits else "no records"
        raise DataError(f"{task.provenance.source}: {what}. Check the source.")
    check_budget(task, counts, min_records=0)
