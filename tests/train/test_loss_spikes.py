from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from liquidmm.config import from_dict
from liquidmm.errors import LiquidError
from liquidmm.train.config import TrainConfig
from liquidmm.train.loss_spikes import LossSpikeDetector
from liquidmm.train.trainer import train


def test_a_spike_is_told_and_not_learnt():
    rng = random.Random(0)
    watch = LossSpikeDetector(6.0)
    usual = [3.0 + rng.gauss(0, 0.05) for _ in range(200)]
    assert [watch.update(loss) for loss in usual] == [None] * 200
    for _ in range(3):
        told = watch.update(4.0)
        assert told is not None
        assert re.fullmatch(r"loss 4\.0000, (2\.99|3\.00)\d\d \+- 0\.0[45]\d\d before", told)
    assert watch.update(3.0) is None


def test_the_start_and_a_falling_loss_are_no_spikes():
    watch = LossSpikeDetector(6.0)
    falling = [10 * 0.99**step for step in range(500)]
    assert [watch.update(loss) for loss in [50.0, *falling]] == [None] * 501


def test_resumed_it_goes_on_as_if_never_stopped():
    rng = random.Random(1)
    losses = [3.0 + rng.gauss(0, 0.05) for _ in range(60)] + [4.0, 3.0, 5.0]
    unbroken, before, after = LossSpikeDetector(6.0), LossSpikeDetector(6.0), LossSpikeDetector(6.0)
    told = [unbroken.update(loss) for loss in losses]
    first = [before.update(loss) for loss in losses[:30]]
    after.restore(json.loads(json.dumps(before.state())))
    assert first + [after.update(loss) for loss in losses[30:]] == told
    assert [told.index(spike) for spike in told if spike] == [60, 62]


def test_none_are_looked_for():
    watch = LossSpikeDetector(0.0)
    assert [watch.update(loss) for loss in [1.0] * 50 + [100.0]] == [None] * 51


def test_a_run_names_step_and_records(plan, monkeypatch):
    monkeypatch.setattr(LossSpikeDetector, "update", lambda self, loss: f"loss {loss:.1f}")
    run = from_dict(TrainConfig, plan, "run.toml")
    train(run)
    lines = [json.loads(line) for line in (run.out / "spikes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    (rank,) = lines[0]["records"]
    assert len(rank) == 2  # rows
    known = {"chat", *(f"{kind}{word}" for kind in ("", "text ") for word in WORDS)}
    assert {key for row in rank for key in row} <= known


def test_a_step_that_fails_leaves_its_rows(plan):
    plan["optim"] = {"lr": 1e30}
    run = from_dict(TrainConfig, plan, "run.toml")
    with pytest.raises(LiquidError, match=r"step (\d): the gradient is .*out/failed.*last save"):
        train(run)
    (path,) = (run.out / "failed").iterdir()
    assert path.name.endswith("-rank-00000.safetensors")
    with safe_open(path, "pt") as file:
        assert file.get_tensor("input_ids").shape == (2, 96)
        assert set(file.keys()) == {"input_ids", "position_ids", "target", "task_ids"}
        keys = json.loads(file.metadata()["keys"])
    assert len(keys) == 2
    assert not Path(run.out / "final").exists()


WORDS = ("red apple", "blue whale", "green tree", "yellow star", "small house")
