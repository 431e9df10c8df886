"""Encoding beside the release's way, on a tokenizer of a few channels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liquidmm.bench.data import DataBench, bench_data
from liquidmm.bench.encoding import EncodingSizes, _Encoding, flops_of, write_pictures
from liquidmm.bench.encoding_sides import stock_encoder
from liquidmm.bench.report import Result
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

SHAPE = VQGANConfig(
    resolution=32,
    base_channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    latent_channels=8,
    code_dim=8,
    codebook_size=64,
)


@pytest.mark.parametrize(("model", "workers"), [("large", 2), ("small", 1)])
def test_encoding_has_its_figures(checkpoint_folder, model, workers):
    sizes = EncodingSizes(
        seconds=0.2, models=(model,), workers=workers, photo=(150, 140), shape=SHAPE
    )
    config = DataBench(parts=("encoding",), checkpoint=checkpoint_folder, encoding=sizes)
    told = []
    result = bench_data(config, told.append).to_dict()
    json.dumps(result)
    figures = result["figures"]
    assert result["missing"] == {}
    ours, release = (
        figures[f"{side}_images_per_s_{model}"]["value"] for side in ("encode", "release")
    )
    speedup = figures[f"encode_speedup_{model}"]
    assert speedup["value"] == pytest.approx(ours / release, rel=2e-3)
    assert speedup["unit"] == "x"
    assert figures[f"encode_agreement_{model}"]["value"] > 98
    assert result["settings"][f"encoding_{model}"]["workers"] == workers
    assert len(told) == 1
    release_note = result["notes"][f"release_images_per_s_{model}"]
    assert ("ChameleonVQVAE" in release_note) == (model == "large")


def test_an_extrapolation_says_so():
    result = Result(bench="data")
    bench = _Encoding(result, EncodingSizes(), "large", "cpu", Path())
    bench.extrapolate(554e9)
    note = result.notes["h100_days_for_30m_extrapolated"]
    assert note == (
        "extrapolated, not measured: 554 GFLOP a picture at an assumed 30% of 989 TFLOP/s in "
        "bfloat16"
    )
    days, speed = (
        result.figures[f"h100_{name}_extrapolated"].value
        for name in ("days_for_30m", "images_per_s")
    )
    assert speed == pytest.approx(0.3 * 989e12 / 554e9, rel=1e-3)
    assert days == pytest.approx(30e6 / speed / 86400, rel=1e-3)


def test_the_stock_encoder_gives_the_same_codes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = VQGANTokenizer(VQGAN(SHAPE, decoder=False))
        pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = stock_encoder(tokenizer)(pixels)
    assert codes.flatten().tolist() == tokenizer.encode(pixels).flatten().tolist()
    narrow = VQGANConfig(base_channels=8, norm_groups=4, resolution=16, channel_multipliers=(1, 1))
    assert stock_encoder(VQGANTokenizer(VQGAN(narrow, decoder=False))) is None


def test_operations_of_chameleons_tokenizer():
    # the four 3 x 3 convolutions at full resolution are more than half of it
    full = 4 * 2 * 512 * 512 * 128 * 128 * 9
    assert 0.5 < full / flops_of(VQGANConfig()) < 0.6


def test_pictures(tmp_path):
    files = write_pictures(tmp_path / "a", 2, (200, 150))
    assert [file.suffix for file in files] == [".jpg", ".jpg"]
    opened = [np.asarray(Image.open(file)) for file in files]
    assert opened[0].shape == (150, 200, 3)
    assert (opened[0] != opened[1]).any()
    assert write_pictures(tmp_path / "b", 1, (64, 64))[0].suffix == ".png"
