"""The tasks of a job in processes of this machine.

Contract: a worker that was killed ends the run with an error instead of leaving it to wait, and
workers end when the process that started them does, however it ended. With one worker the tasks run
in this process.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any

import torch
from datatrove.executor import LocalPipelineExecutor

from liquidmm.encode.engine import QUIET, EncodeStep, WorkerKilledError
from liquidmm.encode.progress import Progress
from liquidmm.errors import LiquidError


class LocalTasks(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs tasks in a pool that notices a dead worker."""

    def __init__(self, step: EncodeStep, workers: int, tasks: int) -> None:
        """Set up.

        Args:
            step: What is done.
            workers: Processes; 1 stays in this one.
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

    def run(self) -> None:
        """Run all tasks.

        Raises:
            WorkerKilledError: A worker was killed; the others were told to end.
        """
        if self.workers == 1:
            for task in range(self.tasks):
                self._run_for_rank(task, QUIET)
            return
        gpus = _gpus()
        context: Any = get_context("spawn" if gpus else "forkserver")
        if not gpus:
            context.set_forkserver_preload([__name__, "liquidmm.encode.job"])
        begun = context.Value("i", 0)
        with ProcessPoolExecutor(self.workers, context, _begin, (self, begun, gpus)) as pool:
            try:
                for future in as_completed([pool.submit(_run, n) for n in range(self.tasks)]):
                    future.result()
            except BrokenProcessPool:
                error = WorkerKilledError(
                    "a worker process was killed, most often because the memory was full. "
                    "Take fewer workers or a smaller batch_size."
                )
                self.progress.stop(error)
                raise error from None
            except BaseException:
                self.progress.stop(LiquidError("the run was broken off"))
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_executor: list[LocalTasks] = []
"""What this worker runs tasks of; one at most."""


def _begin(executor: LocalTasks, begun: Any, gpus: list[str]) -> None:
    """Make a worker ready."""
    # Ctrl-C reaches all processes; the first one tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # stdout carries the result of the command; libraries that print to it must not.
    os.dup2(2, 1)
    if gpus:
        with begun.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[begun.value % len(gpus)]
            begun.value += 1
    _executor.append(executor)


def _run(task: int) -> None:
    _executor[0]._run_for_rank(task, QUIET)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)


def _gpus() -> list[str]:
    """Name the GPUs as CUDA_VISIBLE_DEVICES does."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
