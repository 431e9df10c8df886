import json
import os
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from liquidmm.errors import CheckpointError, ConfigError, LiquidError
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.image_tokenizer.training.codebook import MovingCodebook
from liquidmm.image_tokenizer.training.trainer import train_tokenizer


def weights(folder):
    return load_file(folder / "tokenizer" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_writes_tokenizer_metrics_and_samples(run):
    folder = train_tokenizer(run)
    assert folder == run.out / "tokenizer"
    tokenizer = load_image_tokenizer(folder)
    assert tokenizer.codebook_size == 16
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    assert {"loss", "reconstruction", "commitment", "images_per_second"} <= train[0].keys()
    assert train[0]["codes_used"] == 0  # still warming up
    assert train[1]["codes_used"] > 0
    assert train[1]["perplexity"] > 1
    held_out = [line for line in lines if line["split"] == "eval"]
    assert [line["step"] for line in held_out] == [2, 4]
    assert held_out[-1]["psnr"] > 0
    sheet = Image.open(run.out / "samples" / "step_0000004.png")
    assert sheet.size == (3 * 20 + 4, 2 * 20 + 4)  # originals above reconstructions


@pytest.mark.parametrize(
    "variation",
    [
        {},
        {"train": {"precision": "bfloat16", "ema": 0.0}},
        {"loss": {"adversarial": 0.5, "adversarial_start": 1, "discriminator_channels": 8}},
    ],
    ids=["plain", "bfloat16", "adversarial"],
)
def test_resume_is_exact(run, tmp_path, variation, change):
    run = change(run, **variation)
    if "loss" in variation:
        run = change(run, loss={"discriminator_layers": 1})
    train_tokenizer(run)
    broken = change(run, out=tmp_path / "broken")
    train_tokenizer(broken, stop_at=2)
    train_tokenizer(broken, resume=True)
    assert same(weights(run.out), weights(broken.out))
    checkpoints = [load_file(r.out / "checkpoint.safetensors") for r in (run, broken)]
    assert same(*checkpoints)
    read = [(r.out / "metrics.jsonl").read_text().splitlines() for r in (run, broken)]
    for pair in zip(*read, strict=True):
        a, b = ({**json.loads(line), "images_per_second": 0} for line in pair)
        assert a == b


def test_seed_decides_weights(run, tmp_path, change):
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        changed = change(run, out=tmp_path / name, train={"seed": seed, "steps": 2})
        train_tokenizer(changed)
        results.append(weights(changed.out))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_training_lowers_reconstruction_loss(run, change):
    run = change(run, train={"steps": 30, "lr": 3e-3, "eval_every": 0, "ema": 0.5})
    train_tokenizer(run)
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["reconstruction"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


def test_frozen_encoder_and_codebook_keep_codes(run, tmp_path, change):
    first = train_tokenizer(run)
    second = change(
        run,
        out=tmp_path / "second",
        init_from=first,
        freeze=("encoder", "codebook"),
        codebook={"warmup_steps": 0},
    )
    train_tokenizer(second)
    before, after = load_image_tokenizer(first), load_image_tokenizer(second.out / "tokenizer")
    assert before.fingerprint == after.fingerprint
    a, b = weights(run.out), weights(second.out)
    changed = {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_current_step(run, monkeypatch, number, change):
    update, calls = MovingCodebook.update, []

    def interrupted(self, latents, codes):
        calls.append(codes)
        if len(calls) == 2:
            # The optimizer has moved the weights, but the step is not counted yet.
            os.kill(os.getpid(), number)
        update(self, latents, codes)

    whole = change(run, out=run.out.with_name("whole"))
    train_tokenizer(whole)
    with monkeypatch.context() as patch:
        patch.setattr(MovingCodebook, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(run)
    train_tokenizer(run, resume=True)
    assert same(weights(run.out), weights(whole.out))


def test_unwritable_metrics_are_reported(run):
    (run.out / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(LiquidError, match=r"metrics.jsonl: cannot be written"):
        train_tokenizer(run)


def test_resume_rejects_other_runs(run, tmp_path, change):
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors.*without resuming"):
        train_tokenizer(run, resume=True)
    train_tokenizer(run, stop_at=2)
    with pytest.raises(ConfigError, match="out.*Resume"):
        train_tokenizer(run)
    with pytest.raises(ConfigError, match=r"train\.lr.*0\.0004.*0\.1"):
        train_tokenizer(change(run, train={"lr": 0.1}), resume=True)
    train_tokenizer(change(run, train={"log_every": 2}), resume=True, stop_at=3)
    file = run.out / "checkpoint.safetensors"
    tensors = load_file(file)
    tensors.pop("model.quant_conv.bias")
    save_file(tensors, file, metadata={"step": "3"})
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: cannot be resumed"):
        train_tokenizer(change(run, train={"log_every": 2}), resume=True)


def test_init_from_must_have_same_shape(run, tmp_path, change):
    first = train_tokenizer(run)
    other = change(
        run,
        out=tmp_path / "o",
        init_from=first,
        vqgan={"code_dim": 8},
        codebook={"warmup_steps": 1},
    )
    with pytest.raises(ConfigError, match="vqgan.*init_from"):
        train_tokenizer(other)


def test_resume_of_run_with_old_keys_names_new_key(run):
    train_tokenizer(run, stop_at=2)
    file = run.out / "run.json"
    file.write_text(file.read_text().replace('"lr":', '"learning_rate":'))
    with pytest.raises(ConfigError, match=r"run\.json.*train\.learning_rate.*'lr'.*new run"):
        train_tokenizer(run, resume=True)
