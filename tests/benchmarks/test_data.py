"""Data benchmarks: encoding with a tiny tokenizer, loading of synthetic shards."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from _encoding import (
    EncodingSizes,
    encoder_flops,
    extrapolate,
    measure_encoding,
    stock_encoder,
    write_images,
)
from _loading import (
    LoadingSizes,
    image_records,
    measure_loading,
    text_records,
    write_synthetic,
)
from _results import Result
from data import main
from liquidmm.data.shards import read_shards, verify
from liquidmm.errors import LiquidError
from liquidmm.generate.liquid import DEFAULT_MODEL
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
SMALL = LoadingSizes(
    seconds=0.05,
    workers=0,
    images=50,
    texts=20,
    samples=(120,),
    shard_records=40,
    packing_buffer=8,
    sampled_records=50,
)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workers"), [("large", 2), ("small", 1)])
def test_encoding_has_every_figure(checkpoint_folder, model, workers):
    sizes = EncodingSizes(
        seconds=0.2, models=(model,), workers=workers, photo=(150, 140), shape=SHAPE
    )
    result = Result(bench="data")
    measure_encoding(result, sizes, checkpoint_folder, "cpu")
    assert result.missing == {}
    ours, reference = (
        result.figures[f"{name}_images_per_s_{model}"][0] for name in ("encode", "release")
    )
    speedup, unit = result.figures[f"encode_speedup_{model}"]
    assert speedup == pytest.approx(ours / reference, rel=2e-3)
    assert unit == "x"
    assert result.figures[f"encode_agreement_{model}"][0] > 98
    assert result.settings[f"encoding_{model}"]["workers"] == workers
    note = result.notes[f"release_images_per_s_{model}"]
    assert ("ChameleonVQVAE" in note) == (model == "large")


def test_extrapolation_is_labeled():
    result = Result(bench="data")
    extrapolate(result, 554e9)
    note = result.notes["h100_days_for_30m_extrapolated"]
    assert note.startswith("extrapolated, not measured: 554 GFLOP")
    days, speed = (
        result.figures[f"h100_{name}_extrapolated"][0] for name in ("days_for_30m", "images_per_s")
    )
    assert speed == pytest.approx(0.3 * 989e12 / 554e9, rel=1e-3)
    assert days == pytest.approx(30e6 / speed / 86400, rel=1e-3)


def test_stock_encoder_gives_same_codes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = VQGANTokenizer(VQGAN(SHAPE, decoder=False))
        pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = stock_encoder(tokenizer)(pixels)
    assert codes.flatten().tolist() == tokenizer.encode(pixels).flatten().tolist()
    narrow = VQGANConfig(base_channels=8, norm_groups=4, resolution=16, channel_multipliers=(1, 1))
    assert stock_encoder(VQGANTokenizer(VQGAN(narrow, decoder=False))) is None


def test_encoder_flops_of_chameleon():
    # the four 3 x 3 convolutions at full resolution are more than half of it
    full = 4 * 2 * 512 * 512 * 128 * 128 * 9
    assert 0.5 < full / encoder_flops(VQGANConfig()) < 0.6


def test_write_images_by_size(tmp_path):
    files = write_images(tmp_path / "a", 2, (200, 150))
    assert [file.suffix for file in files] == [".jpg", ".jpg"]
    opened = [np.asarray(Image.open(file)) for file in files]
    assert opened[0].shape == (150, 200, 3)
    assert (opened[0] != opened[1]).any()
    assert write_images(tmp_path / "b", 1, (64, 64))[0].suffix == ".png"


@pytest.mark.slow
def test_loading_has_every_figure(tmp_path):
    result = Result(bench="data")
    measure_loading(result, SMALL, DEFAULT_MODEL, tmp_path)
    figures = {name: value for name, (value, _) in result.figures.items()}
    for name in (
        "read_rows_per_s",
        "read_megabytes_per_s",
        "load_tokens_per_s",
        "load_rows_per_s",
        "load_megabytes_per_s",
        "load_small_tokens_per_s",
        "load_memory_120",
        "load_mapped_120",
    ):
        assert figures[name] > 0, name
    assert 2048 < figures["bytes_per_picture"] < 2600  # codes, caption and about 75 bytes
    assert 80 < figures["load_fill"] <= 100
    assert 0 < figures["load_padded_fill"] < figures["load_fill"]
    tokens, sequences = (figures[f"load_{name}_per_s"] for name in ("tokens", "rows"))
    assert tokens / sequences / 2048 == pytest.approx(figures["load_fill"] / 100, rel=1e-3)
    assert result.settings["loading"]["workers"] == 0
    assert list(tmp_path.iterdir()) == []


def test_synthetic_shards_are_valid(tmp_path):
    records = [*image_records(30, 8, 4), *text_records(10, 20)]
    folder = write_synthetic(tmp_path / "out", records, copies=3)
    shards = read_shards(folder)
    assert len(shards) == 120
    assert [one.key for one in shards.of_kind("text")] == [f"{n:08d}" for n in range(10)] * 3
    assert all(not problem for _, problem in verify(folder))
    assert shards.of_kind("image_text")[0].image_codes[0].shape == (8, 8)
    again = image_records(30, 8, 4)
    pairs = zip(records, again, strict=False)
    assert all(np.array_equal(a.image_codes, b.image_codes) for a, b in pairs)
    lengths = [len(one.text.split()) for one in text_records(3000, 100)]
    assert np.mean(lengths) == pytest.approx(100, rel=0.1)


def test_loading_full_disk_raises(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(LiquidError, match=r"1\.0 GiB, 0\.0 .*--scratch"):
        measure_loading(Result(bench="data"), SMALL, DEFAULT_MODEL, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--only", "loadin"], 2, "'loadin'. Did you mean 'loading'"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--workers", "-1"], 2, "--workers"),
        (["--models", "larg"], 2, "'larg'. Did you mean 'large'"),
        (["--precisions", "float8"], 2, "'float8'. Did you mean 'float32'"),
        (["--samples", "many"], 2, "got 'many'"),
        (["--only", "loading", "--samples", "5"], 1, "multiples of 100000, got 5"),
    ],
)
def test_data_script_invalid_option_is_one_line(arguments, code, words):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert words in result.stderr
