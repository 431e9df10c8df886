"""Engines that run the tasks of a job: processes of this machine, Slurm, Ray.

Contract: `run` returns when no task is left to do or all were told to end, and on Slurm when the
array job was submitted. What was done is told by the shards alone. The step, its log files and the
jobs of Slurm are datatrove's; on this machine and on Ray its tasks are run by means that notice
when a worker was killed: datatrove's own pools wait for it for ever.
"""

from __future__ import annotations

from pathlib import Path

import torch
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from liquidmm.encode.config import EngineConfig
from liquidmm.encode.job import Job, work
from liquidmm.errors import LiquidError
from liquidmm.runtime import cpu_count

QUIET = 1
"""Local rank of which datatrove shows nothing but errors; its log files have everything."""
_GPU_DECODERS = 8
_MOST_DECODERS = 16


class WorkerKilledError(LiquidError):
    """A worker was killed, most often because the memory was full."""


class EncodeStep(PipelineStep):  # type: ignore[misc]
    """The one step of the pipeline: task `rank` of `world_size` tasks."""

    name = "encode"
    type = "liquid"

    def __init__(self, job: Job) -> None:
        """Take over the job."""
        super().__init__()
        self.job = job

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> DocumentsPipeline:
        """Do a task; nothing goes on from here."""
        work(self.job, rank, world_size)
        return None


def workers_of(engine: EngineConfig, device: torch.device, shards: int) -> int:
    """Say how many processes encode at the same time.

    Args:
        engine: Where.
        device: Where this process would encode.
        shards: Shards that are missing.
    """
    if engine.kind != "local":
        return engine.workers
    wanted = engine.workers
    if not wanted and device.type == "cpu":
        wanted = max(1, cpu_count() // engine.threads)
    elif not wanted:
        wanted = _gpus(device)
    return min(wanted, shards)


def tasks_of(engine: EngineConfig, workers: int, shards: int) -> int:
    """Say how many tasks the missing shards are divided among."""
    usual = shards if engine.kind == "local" else 4 * workers
    return min(engine.tasks or usual, shards)


def decoders_of(engine: EngineConfig, device: torch.device, workers: int) -> int:
    """Say how many threads of a worker open pictures."""
    if engine.decoders:
        return engine.decoders
    if engine.kind != "local":
        return _GPU_DECODERS if engine.gpus else 1
    if device.type == "cpu":
        return 1
    return max(1, min(_MOST_DECODERS, cpu_count() // workers))


def check_ended(folder: Path) -> None:
    """Make sure that no job of Slurm still writes.

    Args:
        folder: Where its log files are.

    Raises:
        LiquidError: One does.
    """
    from liquidmm.encode.on_slurm import check_ended

    check_ended(folder)


def run(job: Job, engine: EngineConfig, workers: int, tasks: int) -> None:
    """Run the tasks of a job.

    Args:
        job: The job.
        engine: Where.
        workers: Tasks that run at the same time.
        tasks: Tasks that the shards are divided among.

    Raises:
        WorkerKilledError: A worker was killed; the others were told to end.
        LiquidError: The cluster refused.
    """
    step = EncodeStep(job)
    if engine.kind == "slurm":
        from liquidmm.encode.on_slurm import SlurmTasks

        SlurmTasks(step, engine, workers, tasks).run()
    elif engine.kind == "ray":
        from liquidmm.encode.on_ray import RayTasks

        RayTasks(step, engine, workers, tasks).run()
    else:
        from liquidmm.encode.on_processes import LocalTasks

        LocalTasks(step, workers, tasks).run()


def _gpus(device: torch.device) -> int:
    everywhere = device.type == "cuda" and device.index is None
    return torch.cuda.device_count() if everywhere else 1
