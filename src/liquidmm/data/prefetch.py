"""Items by number, created ahead of time by worker processes or on demand.

An item depends only on its number, not on the number of workers. `get` raises the errors of an
item. Workers end when the process that started them ends, for any reason.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from liquidmm.errors import LiquidError

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Creates items before they are needed."""

    def __init__(self, make: Callable[[int], T], num_workers: int) -> None:
        """Store `make`, which is pickled for the workers; they start with the first `submit`."""
        self._make = make
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[int, Future[T]] = {}

    def submit(self, numbers: Sequence[int]) -> None:
        """Start creating the items that are needed next, in the order of their use."""
        if not self._num_workers:
            return
        if self._pool is None:
            # A fresh process shares neither threads nor devices with this one.
            self._pool = ProcessPoolExecutor(
                self._num_workers,
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._make,),
            )
        try:
            for number in numbers:
                if number not in self._futures:
                    self._futures[number] = self._pool.submit(_make, number)
        except BrokenProcessPool as error:
            raise self._killed() from error

    def get(self, number: int) -> T:
        """Return an item and drop it; create it now if it was not submitted.

        Raises:
            LiquidError: A worker was killed.
        """
        future = self._futures.pop(number, None)
        if future is None:
            return self._make(number)
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._killed() from error

    def close(self) -> None:
        """Stop the workers; from now on, items are created on demand."""
        self._futures.clear()
        self._num_workers = 0
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _killed(self) -> LiquidError:
        return LiquidError(
            f"data.num_workers: one of {self._num_workers} worker processes was killed, perhaps "
            "because memory ran out. Run the same command again with fewer workers."
        )


_make_here: Any = None
"""Creates the items in this process, if it is a worker."""


def _start_worker(make: Any) -> None:
    global _make_here  # noqa: PLW0603 - a pool has no other place for what its processes keep
    _make_here = make
    # Ignore signals to the process group: the main process handles them and ends the workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(number: int) -> Any:
    return _make_here(number)
