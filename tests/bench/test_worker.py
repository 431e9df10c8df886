"""Sides in processes of their own: laps, counts, and how they end."""

import pytest
import torch

from liquidmm.bench.loss import LossSizes, loss_side
from liquidmm.bench.memory import PeakMemory, available
from liquidmm.bench.worker import EndedError, Lap, Worker, alternate, median_rate

SIZES = LossSizes(tokens=4, timed_tokens=4, vocabulary=20, hidden=4)


def test_laps_count_and_alternate():
    workers = {name: Worker(loss_side, "cpu", name, 4, SIZES) for name in ("ours", "naive")}
    with workers["ours"], workers["naive"]:
        laps, ended = alternate(workers, seconds=0.05, rounds=2, warm=1)
        assert workers["ours"].lap(3).steps == 3
    assert not ended
    for name in workers:
        assert 1 <= len(laps[name]) <= 2
    means = [laps[name][0].counts["loss"] / laps[name][0].steps for name in workers]
    assert abs(means[0] - means[1]) < 1e-4


def test_a_side_that_fails_is_told():
    workers = {name: Worker(loss_side, "cpu", name, 4, SIZES) for name in ("none", "ours")}
    with workers["ours"], workers["none"]:
        laps, ended = alternate(workers, seconds=0.05, rounds=1, warm=1)
    assert list(laps) == ["ours"]
    assert ended == {"none": "KeyError: 'none'"}


def test_a_side_that_is_killed_is_told():
    with Worker(loss_side, "cpu", "ours", 4, SIZES) as worker:
        worker.lap()
        worker._process.kill()
        with pytest.raises(EndedError, match="killed by signal 9"):
            worker.lap()


def test_rates():
    laps = [
        Lap(steps=1, seconds=seconds, counts={"tokens": 10.0}, memory=None)
        for seconds in (1.0, 2.0, 5.0)
    ]
    assert median_rate(laps, "tokens") == 5.0
    assert laps[0].rate("others") == 0.0


def test_peak_memory_counts_from_the_mark():
    memory = PeakMemory(torch.device("cpu"))
    whole = memory.peak()
    if whole is None:
        pytest.skip("this system doesn't tell a peak")
    memory.mark()
    held = torch.ones(16 * 2**20)  # 64 MiB
    peak = memory.peak()
    del held
    if peak is not None:
        assert 60 * 2**20 < peak < whole + 64 * 2**20
    assert available(torch.device("cpu"))
