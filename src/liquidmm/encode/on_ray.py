"""Workers on a Ray cluster.

If a worker or its machine is lost, Ray runs the task again; finished shards are kept. Requires the
extra `cluster`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from liquidmm.encode.config import RayConfig
from liquidmm.encode.progress import Progress
from liquidmm.encode.worker import EncodeTask, WorkerKilledError, run_or_stop
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.runtime import require_extra

_RETRIES = 3
"""How many times Ray repeats a task whose worker was lost."""


def run_on_ray(task: EncodeTask, config: RayConfig, num_workers: int) -> None:
    """Write all shards of a task; an error in a worker sets the stop flag.

    Raises:
        WorkerKilledError: The worker of a task was lost too often.
        ConfigError: There is no cluster at the address.
    """
    ray = require_extra("ray", "cluster")
    cpus = max(task.threads, task.decode_threads)
    start = not ray.is_initialized()
    if start:
        _connect(ray, config.address, num_workers * cpus)
    try:
        remote = ray.remote(
            num_cpus=cpus,
            num_gpus=config.gpus,
            memory=round(config.memory * cpus * 2**30),
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )(_run)
        _run_all(ray, remote, task, num_workers)
    except BaseException:
        Progress(task.progress).stop(LiquidError("the run was interrupted"))
        raise
    finally:
        if start:
            ray.shutdown()


def _connect(ray: Any, address: str, cpus: int) -> None:
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"ray.address: no Ray cluster at '{address}' ({reason}). Start one, or use 'local'."
        ) from None


def _run_all(ray: Any, remote: Any, task: EncodeTask, num_workers: int) -> None:
    shared, folder = ray.put(task), Path.cwd()
    waiting = list(range(len(task.shards)))[::-1]
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < num_workers:
            running.append(remote.remote(shared, waiting.pop(), folder))
        ended, running = ray.wait(running)
        try:
            ray.get(ended)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.RaySystemError) as error:
            reason = str(error).splitlines()[0]
            raise WorkerKilledError(
                f"Ray lost the worker of a task {_RETRIES + 1} times ({reason}). Assign more "
                "memory or use a smaller batch_size."
            ) from error


def _run(task: EncodeTask, index: int, folder: Path) -> None:
    os.chdir(folder)  # relative paths start where the command was run
    run_or_stop(task, index, len(task.shards))
