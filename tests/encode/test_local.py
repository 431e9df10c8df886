"""Several workers, some of them killed: the folder always equals that of a single process."""

import multiprocessing
import os
import random
import signal
import threading
import time

import psutil
import pytest

from liquidmm.encode import encode
from liquidmm.encode.progress import Progress
from liquidmm.errors import LiquidError


@pytest.fixture(scope="module")
def context():
    """Processes that start quickly, because slow imports are preloaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["liquidmm.encode", "liquidmm.image_tokenizer.tokenizer"])
    return context


def wait_for(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "no progress"
        time.sleep(0.001)


def shards(folder):
    return len(list(folder.glob("shard-*.arrow")))


def encoding(run):
    """Return the worker processes of a run."""
    return [
        process
        for process in psutil.Process(run).children(recursive=True)
        if "forkserver" in " ".join(process.cmdline()) and process.ppid() != run
    ]


def test_two_workers_write_the_same_bytes_as_one(whole, tmp_path):
    encode(*whole.arguments(tmp_path / "out", num=2))
    whole.assert_same(tmp_path / "out")


@pytest.mark.slow
def test_run_killed_ten_times_is_resumed(whole, tmp_path, context):
    chance = random.Random(0)
    out = tmp_path / "out"
    for kill in range(10):
        run = context.Process(target=encode, args=whole.arguments(out, num=1))
        run.start()
        wanted = shards(out) + chance.randint(0, 3)
        wait_for(lambda wanted=wanted: shards(out) >= wanted and (out / ".encode").exists())
        time.sleep(chance.uniform(0, 0.03))
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        assert run.exitcode == -signal.SIGKILL, kill
        assert shards(out) < 30, kill
    encode(*whole.arguments(out, num=1))
    whole.assert_same(out)


@pytest.mark.slow
def test_workers_end_with_their_parent(whole, tmp_path, context):
    out = tmp_path / "out"
    run = context.Process(target=encode, args=whole.arguments(out, num=2))
    run.start()
    wait_for(lambda: shards(out) >= 2)
    below = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
    assert 2 <= shards(out) < 30
    encode(*whole.arguments(out, num=1))
    whole.assert_same(out)


@pytest.mark.slow
def test_run_continues_when_a_worker_is_killed(whole, tmp_path, caplog):
    out = tmp_path / "out"
    killed = []

    def kill():
        wait_for(lambda: shards(out) >= 2)
        killed.append(encoding(os.getpid())[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    encode(*whole.arguments(out, num=2))
    killer.join()
    assert killed
    assert "a worker process was killed" in caplog.text
    whole.assert_same(out)


def test_error_in_a_worker_ends_the_run(whole, tmp_path):
    out = tmp_path / "out"

    def stop():
        wait_for(lambda: shards(out) >= 1)
        Progress(out / ".encode/counts").stop(LiquidError("the disk is full"))

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(LiquidError, match="the disk is full"):
        encode(*whole.arguments(out, num=2))
    stopper.join()
    assert (out / "rejected.jsonl").exists()
    encode(*whole.arguments(out, num=1))
    whole.assert_same(out)
