"""Workers as processes on this machine.

A killed worker ends the run with an error instead of blocking it. Workers end when the process that
started them ends, for any reason. A single worker runs in the calling process.
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

from liquidmm.encode.progress import Progress
from liquidmm.encode.worker import EncodeTask, WorkerKilledError, run_or_stop
from liquidmm.errors import LiquidError


def run_processes(task: EncodeTask, num_workers: int) -> None:
    """Write all shards of a task; an error in a worker sets the stop flag.

    Raises:
        WorkerKilledError: A worker was killed; the others have ended.
    """
    count = len(task.shards)
    if num_workers == 1:
        for index in range(count):
            run_or_stop(task, index, count)
        return
    gpus = _gpu_names()
    context: Any = get_context("spawn" if gpus else "forkserver")
    if not gpus:
        context.set_forkserver_preload([__name__])
    started = context.Value("i", 0)
    with ProcessPoolExecutor(num_workers, context, _start, (task, started, gpus)) as pool:
        try:
            for future in as_completed([pool.submit(_run, index) for index in range(count)]):
                future.result()
        except BrokenProcessPool:
            error = WorkerKilledError(
                "a worker process was killed, usually because memory ran out. "
                "Use fewer workers or a smaller batch_size."
            )
            Progress(task.progress).stop(error)
            raise error from None
        except BaseException:
            Progress(task.progress).stop(LiquidError("the run was interrupted"))
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_task: list[EncodeTask] = []
"""The task of this worker process."""


def _start(task: EncodeTask, started: Any, gpus: list[str]) -> None:
    """Prepare a worker process."""
    # Ctrl-C reaches all processes; the first one stops the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # stdout is for the command's result; redirect libraries that print to it
    os.dup2(2, 1)
    if gpus:
        with started.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[started.value % len(gpus)]
            started.value += 1
    _task.append(task)


def _run(index: int) -> None:
    run_or_stop(_task[0], index, len(_task[0].shards))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)


def _gpu_names() -> list[str]:
    """Return the GPUs as named in CUDA_VISIBLE_DEVICES."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return names.split(",")[:count] if names else [str(number) for number in range(count)]
