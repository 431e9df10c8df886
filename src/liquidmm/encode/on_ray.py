"""The tasks of a job on a Ray cluster.

Contract: a task whose worker or machine was lost is done again by another; what it had written
stays. A Ray worker keeps its tokenizer from task to task.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor

from liquidmm.encode.config import EngineConfig
from liquidmm.encode.engine import QUIET, EncodeStep, WorkerKilledError
from liquidmm.encode.progress import Progress
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.runtime import require_extra

_RETRIES = 3
"""Times that a task is done again whose worker was lost."""


class RayTasks(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs tasks as Ray tasks."""

    def __init__(self, step: EncodeStep, engine: EngineConfig, workers: int, tasks: int) -> None:
        """Set up.

        Args:
            step: What is done.
            engine: The cluster, and what a worker needs.
            workers: Tasks that run at the same time.
            tasks: Tasks that the shards are divided among.
        """
        super().__init__(
            [step],
            tasks=tasks,
            workers=workers,
            logging_dir=str(step.job.progress.parent),
            skip_completed=False,  # the shards tell what is done
        )
        self.progress = Progress(step.job.progress)
        self.address = engine.address
        self.folder = Path.cwd()
        self.cpus = max(engine.threads, step.job.decoders)
        self.gpus = engine.gpus
        self.memory = engine.memory * self.cpus * 2**30

    def run(self) -> None:
        """Run all tasks.

        Raises:
            WorkerKilledError: The worker of a task was lost again and again.
            ConfigError: There is no cluster at the address.
        """
        ray = require_extra("ray", "ray")
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        try:
            self._run(ray)
        except BaseException:
            self.progress.stop(LiquidError("the run was broken off"))
            raise
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {"address": self.address}
        if self.address == "local":
            options |= {"num_cpus": self.workers * self.cpus, "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"engine.address: no Ray cluster at '{self.address}' ({reason}). Start one, or "
                "take 'local'."
            ) from None

    def _run(self, ray: Any) -> None:
        task = ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            memory=self.memory,
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )(_task)
        held = ray.put(self)
        left = deque(range(self.tasks))
        running: list[Any] = []
        while left or running:
            while left and len(running) < self.workers:
                running.append(task.remote(held, left.popleft()))
            ended, running = ray.wait(running)
            try:
                ray.get(ended)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.RaySystemError) as error:
                reason = str(error).splitlines()[0]
                raise WorkerKilledError(
                    f"Ray lost the worker of a task {_RETRIES + 1} times ({reason}). Give it more "
                    "memory, or take a smaller batch_size."
                ) from error


def _task(executor: RayTasks, number: int) -> None:
    os.chdir(executor.folder)  # relative paths are those of the command
    executor._run_for_rank(number, QUIET)
