import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from liquidmm.data.prefetch import Prefetcher
from liquidmm.errors import DataError, LiquidError


class Squares:
    """Squares, and what happens at some numbers."""

    def __call__(self, number):
        if number == 13:
            raise DataError("thirteen: is unlucky")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetcher_returns_items_and_raises_errors(workers):
    prefetcher = Prefetcher(Squares(), workers)
    prefetcher.submit(range(20))
    made = [prefetcher.get(number) for number in (3, 0, 19, 40)]
    assert [square for square, _ in made] == [9, 0, 361, 1600]
    assert {pid == os.getpid() for _, pid in made[:3]} == {workers == 0}
    with pytest.raises(DataError, match="thirteen: is unlucky"):
        prefetcher.get(13)
    prefetcher.close()
    assert prefetcher.get(5) == (25, os.getpid())


def test_prefetcher_killed_worker_raises():
    prefetcher = Prefetcher(Squares(), 1)
    prefetcher.submit([99])
    with pytest.raises(LiquidError, match=r"data\.num_workers: one of 1 .*killed"):
        prefetcher.get(99)
    with pytest.raises(LiquidError, match=r"data\.num_workers"):
        prefetcher.submit([1])
    prefetcher.close()


def _use(connection):
    prefetcher = Prefetcher(Squares(), 1)
    prefetcher.submit([2])
    connection.send(prefetcher.get(2)[1])
    signal.pause()


def test_prefetcher_workers_end_with_their_parent():
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_use, args=(theirs,))
    process.start()
    worker = mine.recv()
    os.kill(worker, signal.SIGTERM)  # a scheduler signals the whole group; workers ignore it
    os.kill(worker, 0)
    process.kill()
    process.join()
    running = Path(f"/proc/{worker}/exe")
    deadline = time.monotonic() + 20
    while running.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running.exists()
