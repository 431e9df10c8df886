from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from liquidmm.config import from_dict, to_dict
from liquidmm.data.shard_file import Row
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.batch import Batch, hidden_states
from liquidmm.train.config import TrainConfig, differences
from liquidmm.train.loss import head_of
from liquidmm.train.metrics import read_metrics
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


def test_end_to_end(plan):
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
    assert last["gradient_norm"] > 0
    assert 0 < trained[0]["passes"] < last["passes"]
    assert last["tokens_per_second"] > 0
    validated = [line for line in lines if "validation/loss/all/text" in line]
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
def test_resumed_equals_unbroken(plan, tmp_path, precision, matrices):
    plan["optim"]["optimizer"] = matrices
    unbroken = build(plan, out=tmp_path / "unbroken", precision=precision)
    train(unbroken)

    broken = build(plan, out=tmp_path / "broken", precision=precision)

    def interrupt(checkpoint, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    save = train(broken, interrupt)
    assert save.name == "step-00000002"
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


def test_rows_made_ahead_are_the_same(plan, tmp_path):
    plan["data"] |= {"packing_buffer": 8, "eval": []}
    finals = []
    for workers in (0, 1):
        plan["data"]["num_workers"] = workers
        finals.append(weights(train(build(plan, out=tmp_path / str(workers)))))
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_what_is_too_long_is_left_out_and_counted(plan, caplog):
    plan["data"] |= {"seq_len": 32, "packing_buffer": 16, "overlong": "drop", "eval": []}
    run = build(plan)
    train(run)
    lines = read_metrics(run.out / "metrics.jsonl")
    counts = [line["left_out"] for line in lines if "left_out" in line]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert "ids do not fit a row" in caplog.text
    plan["data"]["overlong"] = "error"
    with pytest.raises(DataError, match=r"32.*data"):
        train(build(plan, out=run.out / "again"))


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2"]
WITH_WINDOW = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]


@pytest.mark.parametrize(
    ("family", "window"),
    [(family, None) for family in FAMILIES] + [(family, 3) for family in WITH_WINDOW],
)
def test_packed_documents_never_see_each_other(family_base, family, window):
    config = AutoConfig.from_pretrained(family_base(family))
    if window is not None:
        config.sliding_window = window  # shorter than the documents
    model = AutoModelForCausalLM.from_pretrained(
        family_base(family), config=config, dtype=torch.float32
    ).train()
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(3)
    sizes = (5, 9, 4, 7, 11)
    documents = [torch.randint(0, vocabulary, (size,), generator=generator) for size in sizes]
    ids = torch.cat(documents).reshape(2, 18)  # the rows end with the third and the fifth document
    positions = torch.cat([torch.arange(size) for size in sizes]).reshape(2, 18)
    head = head_of(model).weight

    def logits(ids, positions):
        batch = Batch(input_ids=ids, position_ids=positions, target=ids, task_ids=ids)
        return hidden_states(model, batch).flatten(0, 1) @ head.T

    with torch.no_grad():
        packed = logits(ids, positions)
        alone = [logits(one[None], torch.arange(len(one))[None]) for one in documents]
        # The stock forward pass with its own mask, as any other engine runs it.
        plain = [model(one[None], use_cache=False).logits[0] for one in documents]
    tolerance = 1e-5 * max(1.0, float(packed.abs().max()))
    torch.testing.assert_close(packed, torch.cat(alone), atol=tolerance, rtol=0)
    softcap = getattr(config, "final_logit_softcapping", None)
    capped = packed if softcap is None else softcap * torch.tanh(packed / softcap)
    torch.testing.assert_close(capped, torch.cat(plain), atol=tolerance, rtol=0)


def test_flash_attention_gets_one_long_row(checkpoint_folder, monkeypatch):
    model = Checkpoint.load(checkpoint_folder, "cpu").model
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 100, (3, 12), generator=generator)
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)], [*range(1), *range(11)]])
    batch = Batch(input_ids=ids, position_ids=positions, target=ids, task_ids=ids)
    expected = hidden_states(model, batch)
    seen = []
    forward = model.base_model.forward

    def record(input_ids, position_ids, use_cache):
        seen.append(tuple(input_ids.shape))
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(model.base_model, "forward", record)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    found = hidden_states(model, batch)
    assert seen == [(1, 36)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_launcher_may_say_stop_twice(plan):
    run = build(plan)

    def interrupt(checkpoint, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(run, interrupt).name == "step-00000002"


def test_micro_batches_change_nothing_but_rounding(plan, tmp_path):
    outs = []
    for size in (1, 2, 0):
        run = build(plan, out=tmp_path / str(size), micro_batch_size=size, save_dtype="float32")
        outs.append(weights(train(run)))
    for other in outs[1:]:
        for name, tensor in outs[0].items():
            torch.testing.assert_close(tensor, other[name], atol=2e-4, rtol=0)


def test_a_finished_run_stays(plan):
    run = build(plan)
    final = train(run)
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert train(run) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_need_consent(plan):
    run = build(plan)
    train(run)
    longer = build(plan, steps=6)
    with pytest.raises(ConfigError, match=r"train\.steps is 6, was 4.*--resume"):
        train(longer)
    train(longer, resume=True)
    assert read_metrics(run.out / "metrics.jsonl")[-1]["step"] == 6


def test_what_is_shown_may_change(plan):
    saved = to_dict(build(plan))
    assert (
        differences(saved, build(plan, keep_checkpoints=7, save_every=1, save_dtype="float32"))
        == []
    )
    assert differences(saved, build(plan, seed=5)) == ["seed is 5, was 0"]


def test_validation_folders_of_the_same_name(plan, shards, tmp_path):
    other = tmp_path / "other" / shards.name
    other.parent.mkdir()
    other.symlink_to(shards)
    plan["data"]["eval"] = [{"path": str(path), "task": "text"} for path in (shards, other)]
    run = build(plan, steps=2)
    train(run)
    last = read_metrics(run.out / "metrics.jsonl")[-1]
    figures = {key.removeprefix("validation/loss/") for key in last if "loss" in key}
    assert figures == {f"{shards.as_posix()}/text", f"{other.as_posix()}/text"}


def test_old_saves_go(plan):
    run = build(plan, save_every=1, keep_checkpoints=1)
    train(run)
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["step-00000004"]


def test_no_number_stops_the_run(plan):
    plan["optim"]["lr"] = 1e30
    plan["optim"]["warmup_steps"] = 0
    run = build(plan)
    with pytest.raises(LiquidError, match=r"step \d: the gradient is (nan|inf).*last save is"):
        train(run)
    assert not (run.out / "final").exists()


def test_nothing_to_resume(plan):
    with pytest.raises(ConfigError, match="holds no save to resume"):
        train(build(plan), resume=True)


def test_shards_of_another_tokenizer(plan, tmp_path, write_shards, rows):
    plan["data"]["sources"][0]["path"] = str(write_shards(tmp_path / "other", rows, "other"))
    with pytest.raises(DataError, match="image tokenizer other"):
        train(build(plan))


def test_a_missing_checkpoint(plan, tmp_path):
    plan["checkpoint"] = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        train(build(plan))


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("train", "stepss", 4, "train.stepss: unknown key. Did you mean 'steps'?"),
        ("train", "steps", 0, "train.steps: must be at least 1"),
        ("train", "micro_batch_size", 3, "train.micro_batch_size: must divide"),
        ("train", "precision", "fp16", "train.precision: expected one of"),
        ("data", "seq_len", 4, "data.seq_len: must be at least 8"),
        ("data", "sources", [], "data.sources: is empty"),
        ("optim", "lr", 0, "optim.lr: must be above 0"),
        ("optim", "warmup_steps", 4, "warmup_steps: must be below train.steps"),
    ],
)
def test_bad_run_files(plan, table, key, value, message):
    plan[table][key] = value
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(TrainConfig, plan, "run.toml")


def test_command_line(plan, tmp_path):
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
def test_compiled_blocks(plan, tmp_path):
    from liquidmm.generate.liquid import Liquid

    drawn = []

    def on_sample(checkpoint, step):
        drawn.append(Liquid(checkpoint).generate_image("a red apple").size)

    losses = []
    for compiled in (False, True):
        run = build(plan, out=tmp_path / str(compiled), model=ModelConfig(compile=compiled))
        final = train(run, on_sample)
        lines = read_metrics(run.out / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
        # Compiling must leave no trace in the names of the weights.
        assert weights(final).keys() == weights(run.checkpoint).keys()
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert drawn == [(16, 16)] * 4


@pytest.mark.slow
def test_learns_twenty_pairs_by_heart(plan, tmp_path, write_shards):
    """Both directions to more than 99 % of the labels, in about a minute on one core."""
    rng = np.random.default_rng(1)
    names = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    pairs = [
        Row(
            kind="image_text",
            key=name,
            captions=(f"a {name}",),
            pictures=(rng.integers(0, 16, (4, 4)).astype(np.uint16),),
        )
        for name in names
    ]
    folder = str(write_shards(tmp_path / "pairs", pairs))
    tasks = ("text_to_image", "image_to_text")
    plan["data"] |= {
        "sources": [{"path": folder, "task": task} for task in tasks],
        "eval": [{"path": folder, "task": task} for task in tasks],
        "format": {"guidance_dropout": 0.0, "draw_in_chat_share": 0.0, "first_caption_share": 1.0},
    }
    plan["optim"] = {"lr": 5e-3, "warmup_steps": 10, "optimizer": "muon"}
    plan["train"] = {"steps": 500, "global_batch_size": 8, "eval_samples": 16, "save_every": 0}
    run = build(plan)
    train(run)
    last = read_metrics(run.out / "metrics.jsonl")[-1]
    for task in tasks:
        assert last[f"validation/accuracy/pairs/{task}"] > 0.99


COLOURS = ("red", "blue", "green", "yellow")
THINGS = ("apple", "whale", "tree", "star", "house")


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("", "final_dtype", "save_dtype"),
        ("data", "length", "seq_len"),
        ("data", "context", "max_document_tokens"),
        ("data", "window", "packing_buffer"),
        ("data", "workers", "num_workers"),
        ("data", "too_long", "overlong"),
        ("data", "render", "format"),
        ("data", "validation", "eval"),
        ("train", "batch_rows", "global_batch_size"),
        ("train", "micro_batch_rows", "micro_batch_size"),
        ("train", "validate_every", "eval_every"),
        ("train", "validate_rows", "eval_samples"),
        ("train", "keep", "keep_checkpoints"),
        ("train", "spike", "loss_spike_sigma"),
        ("optim", "matrices", "optimizer"),
        ("optim", "warmup", "warmup_steps"),
        ("optim", "clip", "grad_clip"),
        ("optim", "max_z", "max_z_loss"),
        ("parallel", "replicas", "dp_replicate"),
        ("parallel", "reshard", "reshard_after_forward"),
        ("parallel", "accumulate", "grad_accumulation"),
        ("parallel", "offload", "cpu_offload"),
        ("model", "attention", "attn_implementation"),
        ("model", "checkpoint_activations", "activation_checkpointing"),
        ("model.lora", "targets", "target_modules"),
        ("model.lora", "quantize", "load_in_4bit"),
    ],
)
def test_old_key_rejected_with_the_new_name(plan, table, old, new):
    values = plan
    for name in filter(None, table.split(".")):
        values = values.setdefault(name, {})
    values[old] = 1
    key = f"{table}.{old}".lstrip(".")
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .*'{new}'"):
        from_dict(TrainConfig, plan, "run.toml")
