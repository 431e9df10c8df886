from __future__ import annotations

import json
import random
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from liquidmm.errors import LiquidError, MissingExtraError
from liquidmm.train.loss import LossResult
from liquidmm.train.metrics import (
    LossMeter,
    LossSpikeDetector,
    MetricsLog,
    open_trackers,
    read_metrics,
)


def result(nll, correct, counts) -> LossResult:
    tensors = (torch.tensor(values, dtype=torch.float32) for values in (nll, correct, counts))
    first, second, third = tensors
    return LossResult(loss=torch.tensor(0.0), nll=first, correct=second, counts=third)


def test_meter_weighs_batches_by_targets():
    meter = LossMeter(("text", "chat", "draw"))
    meter.add(result([2.0, 3.0, 0.0], [1, 0, 0], [4, 1, 0]))
    meter.add(result([1.0, 0.0, 0.0], [1, 0, 0], [2, 0, 0]))
    assert meter.report() == {
        "tokens": 7,
        "loss": pytest.approx(6 / 7, abs=1e-5),
        "accuracy": pytest.approx(2 / 7, abs=1e-5),
        "loss/text": 0.5,
        "accuracy/text": pytest.approx(2 / 6, abs=1e-5),
        "loss/chat": 3.0,
        "accuracy/chat": 0.0,
    }


def test_empty_meter_reports_no_tokens():
    assert LossMeter(("text",)).report() == {"tokens": 0}


def test_resumed_log_drops_later_lines(tmp_path):
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


def test_log_of_another_rank_writes_nothing(tmp_path, capfd):
    with MetricsLog(None, step=0, steps=2) as log:
        log.advance(100)
        log.write(1, {"loss": 1.0})
    assert capfd.readouterr() == ("", "")


def test_trackers_get_the_same_metrics_and_are_closed(tmp_path):
    class Recorder:
        def __init__(self):
            self.seen = []

        def log(self, step, metrics):
            self.seen.append((step, metrics))

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


def test_log_that_cannot_be_written_rejected(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", step=0, steps=2) as log:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(LiquidError, match=r"metrics\.jsonl: .*written.*again"):
            log.append(1, {})


def test_pauses_excluded_from_speed(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with MetricsLog(tmp_path / "metrics.jsonl", step=0, steps=2) as log:
        clock[0] += 10
        log.advance(1000)
        with log.pause():
            clock[0] += 90
        log.write(1, {})
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["tokens_per_second"] == 100


def test_spike_reported_and_excluded_from_statistics():
    rng = random.Random(0)
    detector = LossSpikeDetector(6.0)
    usual = [3.0 + rng.gauss(0, 0.05) for _ in range(200)]
    assert [detector.update(loss) for loss in usual] == [None] * 200
    for _ in range(3):
        spike = detector.update(4.0)
        assert spike is not None
        assert re.fullmatch(r"loss 4\.0000, (2\.99|3\.00)\d\d \+- 0\.0[45]\d\d before", spike)
    assert detector.update(3.0) is None


def test_first_and_falling_losses_are_not_spikes():
    detector = LossSpikeDetector(6.0)
    falling = [10 * 0.99**step for step in range(500)]
    assert [detector.update(loss) for loss in [50.0, *falling]] == [None] * 501


def test_resumed_detector_equals_uninterrupted_one():
    rng = random.Random(1)
    losses = [3.0 + rng.gauss(0, 0.05) for _ in range(60)] + [4.0, 3.0, 5.0]
    unbroken, before, after = LossSpikeDetector(6.0), LossSpikeDetector(6.0), LossSpikeDetector(6.0)
    found = [unbroken.update(loss) for loss in losses]
    first = [before.update(loss) for loss in losses[:30]]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert first + [after.update(loss) for loss in losses[30:]] == found
    assert [number for number, spike in enumerate(found) if spike] == [60, 62]


def test_zero_sigma_detects_nothing():
    detector = LossSpikeDetector(0.0)
    assert [detector.update(loss) for loss in [1.0] * 50 + [100.0]] == [None] * 51


def events(folder) -> list[Event]:
    """Read event files as they are laid out: length, checksum, event, checksum."""
    found = []
    for path in sorted(folder.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            found.append(Event.FromString(data[place + 12 : place + 12 + size]))
            place += 16 + size
    return found


def test_tensorboard_contains_every_metric(tmp_path):
    (board,) = open_trackers((), tmp_path, 0, {})
    board.log(1, {"loss": 2.5, "lr": 0.5})
    board.close()
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert scalars == {(1, "loss"): 2.5, (1, "lr"): 0.5}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_tracker_gets_run_and_metrics(tmp_path, monkeypatch, capsys, name):
    calls = []

    def init(**given):
        sys.stdout.write("a greeting\n")
        calls.append(("init", given))

    module = SimpleNamespace(
        init=init,
        log=lambda metrics, step: calls.append(("log", step, metrics)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, name, module)
    board, hosted = open_trackers((name,), tmp_path / "icons" / "model", 3, {"seed": 1})
    board.close()
    hosted.log(4, {"loss": 2.5})
    hosted.close()
    given = {"project": "icons", "name": "model", "config": {"seed": 1}, "resume": "allow"}
    assert calls == [("init", given), ("log", 4, {"loss": 2.5}), ("finish",)]
    assert capsys.readouterr().out == ""  # stdout is for the result of a run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_tracker_package_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "liquidmm\[{name}\]"'):
        open_trackers((name,), tmp_path, 0, {})
