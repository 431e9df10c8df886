"""Candidates in processes: rounds, counts, and failures."""

from functools import partial

import pytest
import torch

from _harness import (
    CandidateError,
    Comparison,
    PeakMemory,
    Round,
    Worker,
    available_memory,
    compare,
)
from _loss import LossSizes, compute_loss

SIZES = LossSizes(tokens=4, timed_tokens=4, vocabulary=20, hidden=4)


def candidate(method):
    return partial(compute_loss, method, 4, SIZES)


@pytest.mark.slow  # starts processes
def test_compare_interleaves_candidates_and_reports_failures():
    candidates = {name: candidate(name) for name in ("none", "ours", "naive")}
    compared = compare(candidates, "cpu", seconds=0.05, rounds=2, warmup=1)
    assert compared.failures == {"none": "KeyError: 'none'"}
    assert sorted(compared.rounds) == ["naive", "ours"]
    assert all(1 <= len(rounds) <= 2 for rounds in compared.rounds.values())
    firsts = [rounds[0] for rounds in compared.rounds.values()]
    losses = [one.counts["loss"] / one.steps for one in firsts]
    assert abs(losses[0] - losses[1]) < 1e-4


@pytest.mark.slow  # starts processes
def test_worker_killed_process_raises():
    with Worker(candidate("ours"), "cpu") as worker:
        assert worker.run(3).steps == 3
        worker.process.kill()
        with pytest.raises(CandidateError, match="signal 9"):
            worker.run()


def test_comparison_rate_is_median():
    rounds = [
        Round(steps=1, seconds=seconds, counts={"tokens": 10.0}, memory=None)
        for seconds in (1.0, 2.0, 5.0)
    ]
    compared = Comparison({"a": rounds}, {})
    assert compared.rate("a", "tokens") == 5.0
    assert compared.rate("a", "others") == 0.0
    assert compared.rate("b", "tokens") is None
    assert (compared.step_seconds("a"), compared.total("a", "tokens")) == (2.0, 30.0)


def test_peak_memory_counts_from_mark():
    memory = PeakMemory(torch.device("cpu"))
    total = memory.peak()
    if total is None:
        pytest.skip("this system does not report a peak")
    memory.mark()
    block = torch.ones(16 * 2**20)  # 64 MiB
    peak = memory.peak()
    del block
    if peak is not None:
        assert 60 * 2**20 < peak < total + 64 * 2**20
    assert available_memory(torch.device("cpu"))
