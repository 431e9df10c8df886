"""Items by number, made ahead by other processes or on the spot.

Contract: an item is a function of its number, so that nothing depends on the number of processes or
on which of them makes it. Errors of an item are raised where it is taken. The processes end with
the one that started them, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, Protocol, TypeVar

from liquidmm.errors import LiquidError

X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)


class Items(Protocol[X_co]):
    """Items by number; pickled where processes make them."""

    def __getitem__(self, number: int) -> X_co:
        """Make one."""


class Ahead(Generic[X]):
    """Makes items that will be needed."""

    def __init__(self, items: Items[X], workers: int) -> None:
        """Set up; processes are started when the first item is announced.

        Args:
            items: Makes an item of its number.
            workers: Number of processes; 0 makes items when they are taken.
        """
        self._items = items
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._begun: dict[int, Future[X]] = {}

    def announce(self, numbers: Sequence[int]) -> None:
        """Say which items will be taken, soonest first."""
        if not self._workers:
            return
        if self._pool is None:
            # A fresh process shares neither threads nor devices with this one.
            self._pool = ProcessPoolExecutor(
                self._workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._items,),
            )
        try:
            for number in numbers:
                if number not in self._begun:
                    self._begun[number] = self._pool.submit(_make, number)
        except BrokenProcessPool as error:
            raise self._ended() from error

    def take(self, number: int) -> X:
        """Give an item; it is made now where it wasn't announced.

        Raises:
            LiquidError: A process was killed.
        """
        future = self._begun.pop(number, None)
        if future is None:
            return self._items[number]
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._ended() from error

    def close(self) -> None:
        """End the processes; what was announced is made on the spot from now on."""
        self._begun.clear()
        self._workers = 0
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _ended(self) -> LiquidError:
        return LiquidError(
            f"data.workers: one of {self._workers} processes that make rows was ended from outside,"
            " perhaps for want of memory. Give the same command again, with fewer."
        )


_items: Any = None
"""What this process makes items with; set where it is a worker."""


def _begin(items: Any) -> None:
    global _items  # noqa: PLW0603 - a pool has no other place for what its processes keep
    _items = items
    # A signal to the group is for the first process, which ends the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(number: int) -> Any:
    return _items[number]
