from __future__ import annotations

import json

import pytest
import torch

from liquidmm.errors import LiquidError
from liquidmm.train.loss import LossResult
from liquidmm.train.metrics import LossMeter, MetricsLog, read_metrics


def result(nll, correct, counts) -> LossResult:
    tensors = (torch.tensor(values, dtype=torch.float32) for values in (nll, correct, counts))
    first, second, third = tensors
    return LossResult(loss=torch.tensor(0.0), nll=first, correct=second, counts=third)


def test_tally_weighs_by_labels():
    tally = LossMeter(("text", "chat", "draw"))
    tally.add(result([2.0, 3.0, 0.0], [1, 0, 0], [4, 1, 0]))
    tally.add(result([1.0, 0.0, 0.0], [1, 0, 0], [2, 0, 0]))
    assert tally.report() == {
        "tokens": 7,
        "loss": pytest.approx(6 / 7, abs=1e-5),
        "accuracy": pytest.approx(2 / 7, abs=1e-5),
        "loss/text": 0.5,
        "accuracy/text": pytest.approx(2 / 6, abs=1e-5),
        "loss/chat": 3.0,
        "accuracy/chat": 0.0,
    }


def test_empty_tally():
    assert LossMeter(("text",)).report() == {"tokens": 0}


def test_log_and_resume(tmp_path):
    path = tmp_path / "out" / "metrics.jsonl"
    with MetricsLog(path, step=0, steps=9) as log:
        for step in range(1, 5):
            log.advance(100)
            log.write(step, {"loss": float(step)})
    assert [line["loss"] for line in read_metrics(path)] == [1, 2, 3, 4]
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # a crash in the middle of a line
    with MetricsLog(path, step=2, steps=9) as log:
        log.append(3, {"loss": 30.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 3, "loss": 30.0}


def test_another_rank_writes_nothing(tmp_path, capfd):
    with MetricsLog(None, step=0, steps=2) as log:
        log.advance(100)
        log.write(1, {"loss": 1.0})
    assert capfd.readouterr() == ("", "")


def test_trackers_get_the_same_figures_and_are_closed(tmp_path):
    class Recorder:
        def __init__(self):
            self.seen = []

        def log(self, step, figures):
            self.seen.append((step, figures))

        def close(self):
            self.seen.append("closed")

    recorder = Recorder()
    with MetricsLog(tmp_path / "m.jsonl", step=0, steps=2, trackers=[recorder]) as log:
        log.append(1, {"loss": 1.0})
    assert recorder.seen == [(1, {"loss": 1.0}), "closed"]


def test_tallies_of_ranks_add_up():
    parts = [LossMeter(("text",)) for _ in range(2)]
    parts[0].add(result([2.0], [1], [4]))
    parts[1].add(result([1.0], [0], [2]))
    other = torch.tensor([[1.0], [0.0], [2.0]]).double()
    assert parts[0].report(lambda sums: sums + other) == {
        "tokens": 6,
        "loss": 0.5,
        "accuracy": pytest.approx(1 / 6, abs=1e-6),
        "loss/text": 0.5,
        "accuracy/text": pytest.approx(1 / 6, abs=1e-6),
    }
    parts[0].merge(parts[1])
    assert parts[0].report()["tokens"] == 6


def test_a_full_disk(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", step=0, steps=2) as log:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(LiquidError, match=r"metrics\.jsonl: can't be written .* Make room"):
            log.append(1, {})


def test_pauses_do_not_count(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", step=0, steps=2) as log:
        log.advance(1000)
        with log.pause():
            torch.randn(10)
        log.wait(-10.0)  # as if ten seconds more had been worked
        log.write(1, {})
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["tokens_per_second"] == pytest.approx(100, rel=0.05)
