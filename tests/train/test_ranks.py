"""Two ranks on gloo against one: the same curve, the same saves, one message."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liquidmm.train.checkpoint import latest, read_progress
from liquidmm.train.metrics import read_metrics


def curve(out: str | Path) -> list[tuple[float, float]]:
    lines = read_metrics(Path(out) / "metrics.jsonl")
    return [(line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


@pytest.fixture
def longer(plan, tmp_path):
    """20 steps, four rows each."""
    plan["train"] |= {"steps": 20, "global_batch_size": 4, "save_every": 10, "eval_every": 0}
    plan["save_dtype"] = "float32"

    def copy(name: str, **changes):
        train = plan["train"] | changes.pop("train", {})
        return plan | {"out": str(tmp_path / name), "train": train} | changes

    return copy


def same(ours: str | Path, theirs: str | Path, tolerance: float = 1e-5) -> None:
    for one, other in zip(curve(ours), curve(theirs), strict=True):
        assert one == pytest.approx(other, abs=tolerance)
    first, second = (load_file(Path(out) / "final/model.safetensors") for out in (ours, theirs))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=2e-4, rtol=0)


def test_two_ranks_equal_one(longer, launch):
    one, two = longer("one"), longer("two")
    assert launch(one) == [0]
    assert launch(two, 2) == [0, 0]
    assert len(curve(one["out"])) == 20
    same(two["out"], one["out"])
    validated = [read_metrics(Path(out["out"]) / "metrics.jsonl")[-1] for out in (one, two)]
    assert validated[0] == pytest.approx(validated[1], abs=1e-5)


def test_a_save_of_two_ranks_goes_on_on_one_and_back(longer, launch):
    unbroken = longer("unbroken")
    assert launch(unbroken) == [0]
    moved = longer("moved")
    for ranks, steps in ((2, 6), (1, 13), (2, 20)):
        # SIGTERM after so many steps, on the last rank only.
        patch = (
            "import os, signal, liquidmm.train.trainer as t\n"
            "step = t._Trainer.train_step\n"
            "def train_step(self, *rest):\n"
            f"    if self.step == {steps - 1} < 19 and self.world.rank == {ranks - 1}:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "    return step(self, *rest)\n"
            "t._Trainer.train_step = train_step"
        )
        assert launch(moved, ranks, patch=patch) == [0] * ranks
        assert (Path(moved["out"]) / f"checkpoints/step-{steps:08d}").is_dir()
    same(moved["out"], unbroken["out"])


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": {"dp_replicate": 2}},
        {"parallel": {"reshard_after_forward": False}},
        {"parallel": {"grad_accumulation": "sharded"}},
        {"parallel": {"cpu_offload": True}},
        {"model": {"activation_checkpointing": True}},
        {"model": {"freeze": ["model.layers.0.*"]}},
        {"model": {"lora": {"rank": 2}}},
        {"optim": {"lr": 1e-3, "warmup_steps": 1, "optimizer": "muon"}},
    ],
    ids=[
        "dp_replicate",
        "kept-gathered",
        "accumulated-sharded",
        "offloaded",
        "activations",
        "frozen",
        "lora",
        "muon",
    ],
)
def test_settings_on_two_ranks_equal_one(longer, launch, changes):
    two = longer("two", train={"steps": 6}, **changes)
    one = longer("one", train={"steps": 6}, **changes) | {"parallel": {}}
    assert launch(one) == [0]
    assert launch(two, 2) == [0, 0]
    # Muon orthogonalizes in bfloat16, which shows the order of additions sooner.
    same(two["out"], one["out"], 1e-4 if "optim" in changes else 1e-5)


def test_samples_come_from_the_whole_model(longer, launch):
    plan = longer("out", train={"steps": 2, "sample_every": 1})
    patch = (
        "import liquidmm.train.trainer as t\n"
        "from pathlib import Path\n"
        "from liquidmm.generate.liquid import Liquid\n"
        "plain = train\n"
        "def show(checkpoint, step):\n"
        "    picture = Liquid(checkpoint).generate_image('a red apple')\n"
        "    picture.save(Path(PLAN['out']) / f'{step}.png')\n"
        "def train(run, resume):\n"
        "    return plain(run, show, resume=resume)"
    )
    assert launch(plan, 2, patch=patch) == [0, 0]
    assert (Path(plan["out"]) / "1.png").is_file()
    assert (Path(plan["out"]) / "2.png").is_file()


@pytest.mark.slow
def test_killed_at_twenty_instants(longer, launch):
    """SIGKILL at random instants, saves in the making included; the weights come out the same."""
    steps = {
        "steps": 150,
        "global_batch_size": 2,
        "save_every": 1,
        "log_every": 50,
        "keep_checkpoints": 2,
    }
    unbroken, broken = (longer(name, train=steps) for name in ("unbroken", "broken"))
    assert launch(unbroken) == [0]
    rng = random.Random(0)
    reached = []
    for _ in range(20):
        patch = (
            "import os, threading, liquidmm.train.trainer as t\n"
            "step = t._Trainer.train_step\n"
            f"left = [{rng.randint(2, 6)}]\n"
            "def train_step(self, *rest):\n"
            "    left[0] -= 1\n"
            "    if left[0] == 0:\n"
            f"        threading.Timer({rng.uniform(0, 0.1)}, os.kill, (os.getpid(), 9)).start()\n"
            "    return step(self, *rest)\n"
            "t._Trainer.train_step = train_step"
        )
        assert launch(broken, patch=patch) == [-9]
        save = latest(Path(broken["out"]))
        reached.append(0 if save is None else read_progress(save).step)
    assert reached == sorted(reached)
    assert 20 < reached[-1] < 150
    assert launch(broken) == [0]
    first, second = (
        load_file(Path(p["out"]) / "final/model.safetensors") for p in (unbroken, broken)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_message_for_an_error_of_all_ranks(longer, launch):
    plan = longer("out", train={"global_batch_size": 3, "micro_batch_size": 1})
    assert launch(plan, 2) == [1, 1]
    assert launch.told() == [
        "train.global_batch_size: 3 rows can't be shared evenly by 2 ranks. Choose a multiple."
    ]
    assert not (Path(plan["out"]) / "run.json").exists()


def test_one_message_for_an_error_of_another_rank(longer, launch, tmp_path):
    plan = longer("out")
    patch = "if os.environ['RANK'] == '1': PLAN['data']['sources'][0]['path'] = 'nowhere'"
    assert launch(plan, 2, patch=patch) == [1, 1]
    (message,) = launch.told()
    assert message.startswith("rank 1: nowhere: not a folder of shards")


def test_one_message_for_a_record_that_fits_no_row(longer, launch, tmp_path, write_shards, rows):
    words = "a red apple on a green tree " * 9
    long = [replace(row, captions=(words,)) for row in rows if row.key == "red apple"]
    folder = write_shards(tmp_path / "long", long)
    plan = longer("out")
    plan["data"] = plan["data"] | {"sources": [{"path": str(folder), "task": "image_to_text"}]}
    assert launch(plan, 2) == [1, 1]
    (message,) = launch.told()
    assert re.fullmatch(r"red apple: \d+ ids, rows have 96\. Use longer rows.*", message)


def test_ranks_that_see_different_data(longer, launch, tmp_path, write_shards, rows):
    fewer = write_shards(tmp_path / "fewer", rows[:-2])
    plan = longer("out")
    patch = f"if os.environ['RANK'] == '1': PLAN['data']['sources'][0]['path'] = {str(fewer)!r}"
    assert launch(plan, 2, patch=patch) == [1, 1]
    (message,) = launch.told()
    assert message.startswith("rank 1: the data or checkpoint is ")
    assert message.endswith("Give all ranks the same files.")


@pytest.mark.slow
def test_torchrun_restarts_a_rank_that_died(longer, launch, tmp_path):
    unbroken, broken = (longer(name, train={"save_every": 2}) for name in ("unbroken", "broken"))
    assert launch(unbroken, 2) == [0, 0]
    (tmp_path / "run.json").write_text(json.dumps(broken))
    script = tmp_path / "dies_once.py"
    script.write_text(
        "import json, os, sys\n"
        "import liquidmm.train.trainer as t\n"
        "from liquidmm.config import from_dict\n"
        "from liquidmm.train.config import TrainConfig\n"
        "step = t._Trainer.train_step\n"
        "def train_step(self, *rest):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and self.step == 7 and self.world.rank == 1:\n"
        "        os._exit(3)\n"
        "    return step(self, *rest)\n"
        "t._Trainer.train_step = train_step\n"
        "plan = json.load(open(sys.argv[1]))\n"
        "t.train(from_dict(TrainConfig, plan, 'run.toml'))\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "2"]
    command += ["--nproc-per-node", "2", str(script), str(tmp_path / "run.json")]
    # What makes gloo's restarts reliable: docs/launch.md.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "goes on after step" in done.stderr
    first, second = (
        load_file(Path(plan["out"]) / "final/model.safetensors") for plan in (unbroken, broken)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
