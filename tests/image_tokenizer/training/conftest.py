"""A tiny training run on twelve random images."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from liquidmm.config import from_dict
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
from liquidmm.runtime import generator


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
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
                "resolution": 16,
                "splits": ["train"],
                "eval_splits": ["held_out"],
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
                "eval_every": 2,
                "sample_every": 0,
                "warmup_steps": 1,
                "device": "cpu",
            },
        },
        "test",
    )


@pytest.fixture
def change():
    """Replace single settings: change(run, train={"steps": 3}, out=...)."""

    def changed(run, **parts):
        return replace(
            run,
            **{
                name: replace(getattr(run, name), **value) if isinstance(value, dict) else value
                for name, value in parts.items()
            },
        )

    return changed
