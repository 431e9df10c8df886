import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from liquidmm.data.prefetch import Ahead
from liquidmm.errors import DataError, LiquidError


class Squares:
    """Squares, and what happens at some numbers."""

    def __getitem__(self, number):
        if number == 13:
            raise DataError("thirteen: is unlucky")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_items_and_errors(workers):
    ahead = Ahead(Squares(), workers)
    ahead.announce(range(20))
    made = [ahead.take(number) for number in (3, 0, 19, 40)]
    assert [square for square, _ in made] == [9, 0, 361, 1600]
    assert {pid == os.getpid() for _, pid in made[:3]} == {workers == 0}
    with pytest.raises(DataError, match="thirteen: is unlucky"):
        ahead.take(13)
    ahead.close()
    assert ahead.take(5) == (25, os.getpid())


def test_a_killed_process_is_told():
    ahead = Ahead(Squares(), 1)
    ahead.announce([99])
    with pytest.raises(LiquidError, match=r"data\.workers: one of 1 processes .* ended from"):
        ahead.take(99)
    with pytest.raises(LiquidError, match=r"data\.workers"):
        ahead.announce([1])
    ahead.close()


def _use(connection):
    ahead = Ahead(Squares(), 1)
    ahead.announce([2])
    connection.send(ahead.take(2)[1])
    signal.pause()


def test_processes_end_with_the_one_that_started_them():
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_use, args=(theirs,))
    process.start()
    worker = mine.recv()
    os.kill(worker, signal.SIGTERM)  # what a scheduler sends to all is for the first process
    os.kill(worker, 0)
    process.kill()
    process.join()
    running = Path(f"/proc/{worker}/exe")
    deadline = time.monotonic() + 20
    while running.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running.exists()
