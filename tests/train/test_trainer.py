from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from liquidmm.config import from_dict, to_dict
from liquidmm.data.samples import Sample
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.config import TrainConfig
from liquidmm.train.metrics import LossSpikeDetector, read_metrics
from liquidmm.train.model import ModelConfig
from liquidmm.train.trainer import train


def build(plan, **changes) -> TrainConfig:
    run = from_dict(TrainConfig, plan, "run.toml")
    loop = {name: changes.pop(name) for name in list(changes) if hasattr(run.train, name)}
    return replace(run, train=replace(run.train, **loop), **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (shard,) = folder.glob("shard-*.safetensors")
    return load_file(shard)


def test_run_writes_metrics_checkpoints_and_final_model(plan):
    seen = []

    def on_sample(checkpoint, step):
        assert not checkpoint.model.training
        assert not torch.is_grad_enabled()
        torch.rand(5)  # must not disturb the training
        seen.append(step)

    run = build(plan)
    final = train(run, on_sample)
    assert final == run.out / "final"
    assert seen == [2, 4]
    assert json.loads((run.out / "run.json").read_text()) == to_dict(run)

    lines = read_metrics(run.out / "metrics.jsonl")
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert trained[0]["lr"] == 1e-3
    last = trained[-1]
    assert {"loss/text_to_image", "accuracy/text_to_image"} < set().union(*trained)
    assert last["grad_norm"] > 0
    assert 0 < trained[0]["epochs"] < last["epochs"]
    assert last["tokens_per_second"] > 0
    validated = [line for line in lines if "eval/loss/all/text" in line]
    assert [line["step"] for line in validated] == [2, 4]

    loaded = Checkpoint.load(final, "cpu")
    assert loaded.processor.sizes == ((16, 16),)
    assert loaded.image_tokenizer.codebook_size == 16
    AutoModelForCausalLM.from_pretrained(final)
    assert "| text_to_image | 3.0 |" in (final / "README.md").read_text()
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights(final).values())
    assert sorted(path.name for path in (run.out / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]


@pytest.mark.parametrize(
    ("precision", "matrices"), [("float32", "adamw"), ("bfloat16", "adamw"), ("float32", "muon")]
)
def test_resumed_run_equals_uninterrupted_run(plan, tmp_path, precision, matrices):
    plan["optim"]["optimizer"] = matrices
    unbroken = build(plan, out=tmp_path / "unbroken", precision=precision)
    train(unbroken)

    broken = build(plan, out=tmp_path / "broken", precision=precision)

    def interrupt(checkpoint, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(broken, interrupt)
    assert stopped.name == "step-00000002"
    assert not (broken.out / "final").exists()
    train(broken)

    ours, theirs = weights(broken.out / "final"), weights(unbroken.out / "final")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [saved(run.out / "checkpoints/step-00000004") for run in (broken, unbroken)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    figures = [
        [
            {key: line[key] for key in line.keys() - {"tokens_per_second", "memory_gib"}}
            for line in read_metrics(run.out / "metrics.jsonl")
        ]
        for run in (broken, unbroken)
    ]
    assert figures[0] == figures[1]


def test_num_workers_does_not_change_weights(plan, tmp_path):
    plan["data"] |= {"packing_buffer": 8, "eval": []}
    finals = []
    for workers in (0, 1):
        plan["data"]["num_workers"] = workers
        finals.append(weights(train(build(plan, out=tmp_path / str(workers)))))
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_overlong_records_dropped_and_counted(plan, caplog):
    plan["data"] |= {"seq_len": 32, "packing_buffer": 16, "overlong": "drop", "eval": []}
    run = build(plan)
    train(run)
    lines = read_metrics(run.out / "metrics.jsonl")
    counts = [line["dropped"] for line in lines if "dropped" in line]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert "37" in caplog.text
    plan["data"]["overlong"] = "error"
    with pytest.raises(DataError, match=r"32.*data"):
        train(build(plan, out=run.out / "again"))


def test_second_sigterm_ignored(plan):
    run = build(plan)

    def interrupt(checkpoint, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(run, interrupt).name == "step-00000002"


def test_micro_batch_size_changes_rounding_only(plan, tmp_path):
    outs = []
    for size in (1, 2, 0):
        run = build(plan, out=tmp_path / str(size), micro_batch_size=size, save_dtype="float32")
        outs.append(weights(train(run)))
    for other in outs[1:]:
        for name, tensor in outs[0].items():
            torch.testing.assert_close(tensor, other[name], atol=2e-4, rtol=0)


def test_finished_run_not_repeated(plan):
    run = build(plan)
    final = train(run)
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert train(run) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == before


def test_changed_settings_need_resume_flag(plan):
    run = build(plan)
    train(run)
    longer = build(plan, steps=6)
    with pytest.raises(ConfigError, match=r"train\.steps is 6, was 4.*--resume"):
        train(longer)
    train(longer, resume=True)
    assert read_metrics(run.out / "metrics.jsonl")[-1]["step"] == 6


def test_eval_folders_of_the_same_name_have_own_metrics(plan, shards, tmp_path):
    other = tmp_path / "other" / shards.name
    other.parent.mkdir()
    other.symlink_to(shards)
    plan["data"]["eval"] = [{"path": str(path), "task": "text"} for path in (shards, other)]
    run = build(plan, steps=2)
    train(run)
    last = read_metrics(run.out / "metrics.jsonl")[-1]
    figures = {key.removeprefix("eval/loss/") for key in last if "loss" in key}
    assert figures == {f"{shards.as_posix()}/text", f"{other.as_posix()}/text"}


def test_old_checkpoints_removed(plan):
    run = build(plan, save_every=1, keep_checkpoints=1)
    train(run)
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["step-00000004"]


def test_infinite_gradient_stops_the_run(plan):
    plan["optim"]["lr"] = 1e30
    plan["optim"]["warmup_steps"] = 0
    run = build(plan)
    with pytest.raises(LiquidError, match=r"step \d: .*(nan|inf).*latest checkpoint"):
        train(run)
    assert not (run.out / "final").exists()


def test_resume_without_checkpoint_rejected(plan):
    with pytest.raises(ConfigError, match="out.*--resume"):
        train(build(plan), resume=True)


def test_shards_of_another_tokenizer_rejected(plan, tmp_path, write_shards, samples):
    plan["data"]["sources"][0]["path"] = str(write_shards(tmp_path / "other", samples, "other"))
    with pytest.raises(DataError, match="image tokenizer other"):
        train(build(plan))


def test_missing_checkpoint_rejected(plan, tmp_path):
    plan["checkpoint"] = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        train(build(plan))


def test_command_trains_and_writes_samples(plan, tmp_path):
    from liquidmm.cli.train import command

    lines = [f'checkpoint = "{plan["checkpoint"]}"', f'out = "{plan["out"]}"']
    for table in ("train", "optim"):
        lines += [f"[{table}]", *(f"{key} = {value}" for key, value in plan[table].items())]
    lines += ["[sample]", 'prompts = ["a red apple"]', 'questions = ["Who are you?"]']
    lines += ["[data]", "seq_len = 96"]
    for source in plan["data"]["sources"]:
        lines += ["[[data.sources]]", f'path = "{source["path"]}"', f'task = "{source["task"]}"']
    path = tmp_path / "run.toml"
    path.write_text("\n".join(lines))
    arguments = [str(path), "--set", "train.steps=2", "--set", "train.sample_every=1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(Path(plan["out"]) / "final")
    samples = Path(plan["out"]) / "samples"
    names = sorted(path.name for path in samples.iterdir())
    assert names == [f"step-0000000{step}.{kind}" for step in (1, 2) for kind in ("png", "txt")]
    lines = (samples / "step-00000002.txt").read_text().split("\n")
    assert lines[0] == "a red apple"
    assert "Who are you?" in lines


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(plan, tmp_path):
    from liquidmm.generate.liquid import Liquid

    sizes = []

    def on_sample(checkpoint, step):
        sizes.append(Liquid(checkpoint).generate_image("a red apple").size)

    losses = []
    for compiled in (False, True):
        run = build(plan, out=tmp_path / str(compiled), model=ModelConfig(compile=compiled))
        final = train(run, on_sample)
        lines = read_metrics(run.out / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
        # Compiling must leave no trace in the names of the weights.
        assert weights(final).keys() == weights(run.checkpoint).keys()
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert sizes == [(16, 16)] * 4


@pytest.mark.slow
def test_twenty_pairs_memorized(plan, tmp_path, write_shards):
    """Both directions to more than 99 % of the labels, in about a minute on one core."""
    rng = np.random.default_rng(1)
    names = [f"{color} {thing}" for color in COLORS for thing in THINGS]
    pairs = [
        Sample(
            kind="image_text",
            key=name,
            captions=(f"a {name}",),
            image_codes=(rng.integers(0, 16, (4, 4)).astype(np.uint16),),
        )
        for name in names
    ]
    folder = str(write_shards(tmp_path / "pairs", pairs))
    tasks = ("text_to_image", "image_to_text")
    plan["data"] |= {
        "sources": [{"path": folder, "task": task} for task in tasks],
        "eval": [{"path": folder, "task": task} for task in tasks],
        "format": {"caption_dropout": 0.0, "chat_format_prob": 0.0, "first_caption_prob": 1.0},
    }
    plan["optim"] = {"lr": 5e-3, "warmup_steps": 10, "optimizer": "muon"}
    plan["train"] = {"steps": 500, "global_batch_size": 8, "eval_samples": 16, "save_every": 0}
    run = build(plan)
    train(run)
    last = read_metrics(run.out / "metrics.jsonl")[-1]
    for task in tasks:
        assert last[f"eval/accuracy/pairs/{task}"] > 0.99


COLORS = ("red", "blue", "green", "yellow")
THINGS = ("apple", "whale", "tree", "star", "house")


def test_loss_spike_written_with_step_and_records(plan, monkeypatch):
    monkeypatch.setattr(LossSpikeDetector, "update", lambda self, loss: f"loss {loss:.1f}")
    run = from_dict(TrainConfig, plan, "run.toml")
    train(run)
    lines = [json.loads(line) for line in (run.out / "spikes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    (rank,) = lines[0]["records"]
    assert len(rank) == 2  # sequences
    known = {"chat", *(f"{kind}{word}" for kind in ("", "text ") for word in WORDS)}
    assert {key for sequence in rank for key in sequence} <= known


def test_failed_step_saves_its_batch(plan):
    plan["optim"] = {"lr": 1e30}
    run = from_dict(TrainConfig, plan, "run.toml")
    with pytest.raises(LiquidError, match=r"step (\d): .*out/failed.*checkpoint"):
        train(run)
    (path,) = (run.out / "failed").iterdir()
    assert path.name.endswith("-rank-00000.safetensors")
    with safe_open(path, "pt") as file:
        assert file.get_tensor("input_ids").shape == (2, 96)
        assert set(file.keys()) == {"input_ids", "position_ids", "targets", "task_ids"}
        keys = json.loads(file.metadata()["keys"])
    assert len(keys) == 2
    assert not Path(run.out / "final").exists()


WORDS = ("red apple", "blue whale", "green tree", "yellow star", "small house")
