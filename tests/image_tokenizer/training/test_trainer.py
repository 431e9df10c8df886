import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from liquidmm.config import from_dict
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.image_tokenizer.training.config import ImageDataConfig, TrainTokenizerConfig
from liquidmm.image_tokenizer.training.dataset import batch, load_pictures
from liquidmm.image_tokenizer.training.trainer import Trainer, train_tokenizer
from liquidmm.runtime import generator


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.randint(0, 256, (12, 8, 8, 3), generator=generator(0, "cpu"), dtype=torch.uint8)
    lines = []
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels.numpy()).resize((16, 16)).save(folder / f"{index:02}.png")
        split = "held_out" if index >= 9 else "train"
        line = {"image": f"{index:02}.png", "caption": "x\u2028y", "split": split}
        lines.append(json.dumps(line, ensure_ascii=False))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture
def run(images, tmp_path):
    return from_dict(
        TrainTokenizerConfig,
        {
            "out": str(tmp_path / "out"),
            "data": {
                "images": [str(images / "records.jsonl")],
                "size": 16,
                "splits": ["train"],
                "validation_splits": ["held_out"],
                "shift": 1,
            },
            "vqgan": {
                "resolution": 16,
                "base_channels": 8,
                "channel_multipliers": [1, 2],
                "num_res_blocks": 1,
                "latent_channels": 8,
                "code_dim": 4,
                "codebook_size": 16,
            },
            "codebook": {"warmup_steps": 1, "restart_after": 1, "samples": 512},
            "train": {
                "steps": 4,
                "batch_size": 4,
                "log_every": 1,
                "validate_every": 2,
                "sample_every": 0,
                "warmup_steps": 1,
                "device": "cpu",
            },
        },
        "test",
    )


def change(run, **parts):
    """Replace single settings: change(run, train={"steps": 3}, out=...)."""
    return replace(
        run,
        **{
            name: replace(getattr(run, name), **value) if isinstance(value, dict) else value
            for name, value in parts.items()
        },
    )


def weights(folder):
    return load_file(folder / "tokenizer" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_files_and_metrics(run):
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
    held_out = [line for line in lines if line["split"] == "validation"]
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
def test_resume_is_exact(run, tmp_path, variation):
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


def test_seeds(run, tmp_path):
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        changed = change(run, out=tmp_path / name, train={"seed": seed, "steps": 2})
        train_tokenizer(changed)
        results.append(weights(changed.out))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_it_learns(run):
    run = change(run, train={"steps": 30, "learning_rate": 3e-3, "validate_every": 0, "ema": 0.5})
    train_tokenizer(run)
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["reconstruction"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


def test_frozen_codes_stay(run, tmp_path):
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
def test_a_signal_ends_the_run_after_the_step(run, monkeypatch, number):
    learn = Trainer._learn_codes

    def interrupted(self, latents, codes):
        if self.step == 2:
            # The optimizer has moved the weights, but the step isn't counted yet.
            os.kill(os.getpid(), number)
        learn(self, latents, codes)

    whole = change(run, out=run.out.with_name("whole"))
    train_tokenizer(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn_codes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(run)
    train_tokenizer(run, resume=True)
    assert same(weights(run.out), weights(whole.out))


def test_metrics_that_cannot_be_written(run):
    (run.out / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(LiquidError, match=r"metrics.jsonl: can't be written .* Make room"):
        train_tokenizer(run)


def test_resume_refusals(run, tmp_path):
    with pytest.raises(ConfigError, match="Start the training without resuming"):
        train_tokenizer(run, resume=True)
    train_tokenizer(run, stop_at=2)
    with pytest.raises(ConfigError, match="holds a training already"):
        train_tokenizer(run)
    with pytest.raises(ConfigError, match=r"train.learning_rate: 0.1, but .* 0.0004"):
        train_tokenizer(change(run, train={"learning_rate": 0.1}), resume=True)
    train_tokenizer(change(run, train={"log_every": 2}), resume=True, stop_at=3)
    file = run.out / "checkpoint.safetensors"
    tensors = load_file(file)
    tensors.pop("model.quant_conv.bias")
    save_file(tensors, file, metadata={"step": "3"})
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train_tokenizer(change(run, train={"log_every": 2}), resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"size": 15}}, "not divisible by the model's factor 2"),
        ({"codebook": {"warmup_steps": 0}}, "warmup_steps must be at least 1"),
        ({"codebook": {"warmup_steps": 4}}, "leaves nothing of the 4 steps"),
        ({"freeze": ("encoder",)}, "without init_from"),
        ({"train": {"steps": 0}}, "steps: 0"),
        ({"train": {"ema": 1.0}}, "ema: 1.0"),
        ({"data": {"shift": 16}}, "shift: 16"),
        ({"loss": {"l1": -1.0}}, "l1: -1.0"),
    ],
)
def test_runs_that_cannot_work(run, changes, words):
    with pytest.raises(ConfigError, match=words):
        change(run, **changes)


def test_init_from_must_fit(run, tmp_path):
    first = train_tokenizer(run)
    other = change(
        run,
        out=tmp_path / "o",
        init_from=first,
        vqgan={"code_dim": 8},
        codebook={"warmup_steps": 1},
    )
    with pytest.raises(ConfigError, match="shape differs"):
        train_tokenizer(other)


def test_pictures_and_splits(images):
    config = ImageDataConfig(
        images=(images / "records.jsonl",), size=16, validation_splits=("held_out",)
    )
    by_split = load_pictures(config, 0)
    assert (len(by_split.train), len(by_split.validation)) == (9, 3)
    folder = replace(config, images=(images,), validation_splits=(), validation_fraction=0.25)
    by_share = load_pictures(folder, 0)
    assert (len(by_share.train), len(by_share.validation)) == (9, 3)
    together = torch.cat(list(by_share)).flatten(1)
    assert len(torch.unique(together, dim=0)) == 12
    with pytest.raises(
        ConfigError, match=r"no picture to train on\. Splits found: held_out, train"
    ):
        load_pictures(replace(config, splits=("trian",)), 0)


def test_bad_sources(images, tmp_path):
    def load(text):
        (tmp_path / "r.jsonl").write_text(text)
        return load_pictures(ImageDataConfig(images=(tmp_path / "r.jsonl",), size=16), 0)

    with pytest.raises(DataError, match=r"r.jsonl:2: no JSON"):
        load(f'{{"image": "{images}/00.png"}}\nnope\n')
    with pytest.raises(DataError, match=r'r.jsonl:1: no "image"'):
        load('{"caption": "x"}\n')
    with pytest.raises(DataError, match="no such file"):
        load('{"image": "none.png"}\n')
    with pytest.raises(DataError, match="Give a folder or a .jsonl file"):
        load_pictures(ImageDataConfig(images=(tmp_path / "none",), size=16), 0)


def test_batches_cover_each_epoch_and_depend_on_the_step_only():
    pictures = (
        torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 4, 4).contiguous()
    )
    config = ImageDataConfig(images=(), size=4)

    def seen(step):
        values = (batch(pictures, step, 4, 7, config)[:, 0, 0, 0] + 1) * 127.5
        return values.round().int().tolist()

    order = [value for step in range(5) for value in seen(step)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert seen(3) == seen(3)
    moved = replace(config, shift=2, flip=True)
    x = batch(pictures, 0, 4, 7, moved)
    assert torch.equal(x, batch(pictures, 0, 4, 7, moved))
    assert x.max() == 1.0  # white came in at the border
