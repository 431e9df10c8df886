"""Two ranks on gloo compared with one rank: the same losses, checkpoints and errors."""

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

from liquidmm.train.checkpoint import latest_checkpoint, read_state
from liquidmm.train.metrics import read_metrics


def curve(out: str | Path) -> list[tuple[float, float]]:
    lines = read_metrics(Path(out) / "metrics.jsonl")
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


@pytest.fixture
def longer(plan, tmp_path):
    """20 steps of four sequences each."""
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


@pytest.mark.slow
def test_two_ranks_equal_one_rank(longer, launch):
    one, two = longer("one"), longer("two")
    assert launch(one) == [0]
    assert launch(two, 2) == [0, 0]
    assert len(curve(one["out"])) == 20
    same(two["out"], one["out"])
    validated = [read_metrics(Path(out["out"]) / "metrics.jsonl")[-1] for out in (one, two)]
    assert validated[0] == pytest.approx(validated[1], abs=1e-5)


@pytest.mark.slow
def test_checkpoint_resumes_on_another_number_of_ranks(longer, launch):
    unbroken = longer("unbroken")
    assert launch(unbroken) == [0]
    moved = longer("moved")
    for ranks, steps in ((2, 6), (1, 13), (2, 20)):
        # SIGTERM after so many steps, on the last rank only.
        patch = (
            "import os, signal\n"
            "def on_step(step, rank):\n"
            f"    if step == {steps - 1} < 19 and rank == {ranks - 1}:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)"
        )
        assert launch(moved, ranks, patch=patch) == [0] * ranks
        assert (Path(moved["out"]) / f"checkpoints/step-{steps:08d}").is_dir()
    same(moved["out"], unbroken["out"])


@pytest.mark.slow
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
def test_parallel_settings_on_two_ranks_equal_one_rank(longer, launch, changes):
    two = longer("two", train={"steps": 6}, **changes)
    one = longer("one", train={"steps": 6}, **changes) | {"parallel": {}}
    assert launch(one) == [0]
    assert launch(two, 2) == [0, 0]
    # Muon orthogonalizes in bfloat16, which shows the order of additions sooner.
    same(two["out"], one["out"], 1e-4 if "optim" in changes else 1e-5)


def test_sample_hook_gets_the_whole_model(longer, launch):
    plan = longer("out", train={"steps": 2, "sample_every": 1})
    patch = (
        "from pathlib import Path\n"
        "from liquidmm.generate.liquid import Liquid\n"
        "def on_sample(checkpoint, step):\n"
        "    image = Liquid(checkpoint).generate_image('a red apple')\n"
        "    image.save(Path(PLAN['out']) / f'{step}.png')"
    )
    assert launch(plan, 2, patch=patch) == [0, 0]
    assert (Path(plan["out"]) / "1.png").is_file()
    assert (Path(plan["out"]) / "2.png").is_file()


@pytest.mark.slow
def test_run_killed_twenty_times_equals_uninterrupted_run(longer, launch):
    """SIGKILL at random times, also while checkpoints are written, gives the same weights."""
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
            "import os, threading\n"
            f"left = [{rng.randint(2, 6)}]\n"
            "def on_step(step, rank):\n"
            "    left[0] -= 1\n"
            "    if left[0] == 0:\n"
            f"        threading.Timer({rng.uniform(0, 0.1)}, os.kill, (os.getpid(), 9)).start()"
        )
        assert launch(broken, patch=patch) == [-9]
        found = latest_checkpoint(Path(broken["out"]))
        reached.append(0 if found is None else read_state(found).step)
    assert reached == sorted(reached)
    assert 20 < reached[-1] < 150
    assert launch(broken) == [0]
    first, second = (
        load_file(Path(p["out"]) / "final/model.safetensors") for p in (unbroken, broken)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_error_of_all_ranks_reported_once(longer, launch):
    plan = longer("out", train={"global_batch_size": 3, "micro_batch_size": 1})
    assert launch(plan, 2) == [1, 1]
    (message,) = launch.errors()
    assert re.match(r"train\.global_batch_size: .*2.*3", message)
    assert not (Path(plan["out"]) / "run.json").exists()


def test_error_of_another_rank_reported_once(longer, launch, tmp_path):
    plan = longer("out")
    patch = "if os.environ['RANK'] == '1': PLAN['data']['sources'][0]['path'] = 'nowhere'"
    assert launch(plan, 2, patch=patch) == [1, 1]
    (message,) = launch.errors()
    assert message.startswith("rank 1: nowhere: ")


def test_overlong_record_reported_once(longer, launch, tmp_path, write_shards, samples):
    words = "a red apple on a green tree " * 9
    long = [replace(each, captions=(words,)) for each in samples if each.key == "red apple"]
    folder = write_shards(tmp_path / "long", long)
    plan = longer("out")
    plan["data"] = plan["data"] | {"sources": [{"path": str(folder), "task": "image_to_text"}]}
    assert launch(plan, 2) == [1, 1]
    (message,) = launch.errors()
    assert re.match(r"red apple: .*96", message)


def test_ranks_with_different_data_rejected(longer, launch, tmp_path, write_shards, samples):
    fewer = write_shards(tmp_path / "fewer", samples[:-2])
    plan = longer("out")
    patch = f"if os.environ['RANK'] == '1': PLAN['data']['sources'][0]['path'] = {str(fewer)!r}"
    assert launch(plan, 2, patch=patch) == [1, 1]
    (message,) = launch.errors()
    assert re.match("rank 1: the data or checkpoint is .*rank 0", message)


@pytest.mark.slow
def test_torchrun_restarts_a_failed_rank(longer, launch, tmp_path):
    unbroken, broken = (longer(name, train={"save_every": 2}) for name in ("unbroken", "broken"))
    assert launch(unbroken, 2) == [0, 0]
    (tmp_path / "run.json").write_text(json.dumps(broken))
    script = tmp_path / "dies_once.py"
    script.write_text(
        "import json, os, sys\n"
        "from liquidmm.config import from_dict\n"
        "from liquidmm.train.config import TrainConfig\n"
        "from liquidmm.train.trainer import train\n"
        "def on_step(step, rank):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and step == 7 and rank == 1:\n"
        "        os._exit(3)\n"
        "plan = json.load(open(sys.argv[1]))\n"
        "train(from_dict(TrainConfig, plan, 'run.toml'), on_step=on_step)\n"
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
    assert "resuming after step" in done.stderr
    first, second = (
        load_file(Path(plan["out"]) / "final/model.safetensors") for plan in (unbroken, broken)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
