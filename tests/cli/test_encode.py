import json

import pytest
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.data.shards import read_shards
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image tokenizer, two pictures with records, and a run file."""
    place = tmp_path_factory.mktemp("encode")
    config = VQGANConfig(
        resolution=16,
        base_channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        latent_channels=4,
        code_dim=4,
        codebook_size=8,
    )
    VQGANTokenizer(VQGAN(config)).save(place / "tokenizer")
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "red").save(place / f"{name}.png")
    lines = [
        {"image": "a.png", "caption": "one", "license": "MIT", "split": "train"},
        {"image": "b.png", "caption": "three", "split": "test"},
    ]
    (place / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "run.toml").write_text(
        f"""
        tokenizer = "{place}/tokenizer"
        out = "{place}/from_run"
        [source]
        path = "{place}/records.jsonl"
        splits = ["train"]
        [encode]
        size = 16
        [engine]
        workers = 1
        """
    )
    return place


def test_run_file(place):
    result = run("encode", place / "run.toml")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{place / 'from_run'}\n"
    assert "1 records (1 image_text), 1 pictures" in result.stderr
    assert read_shards(place / "from_run")[0].image_codes[0].shape == (8, 8)


def test_options_win_over_the_run_file(place):
    out = place / "both"
    result = run("encode", place / "run.toml", "-o", out, "--size", 8, "--set", "source.splits=[]")
    assert result.exit_code == 0, result.output
    assert [row.image_codes[0].shape for row in read_shards(out)] == [(4, 4), (4, 4)]


def test_source_with_options_and_inspect(place):
    out = place / "direct"
    options = ("--tokenizer", place / "tokenizer", "-o", out, "--size", "16", "--workers", "1")
    result = run("encode", place / "records.jsonl", *options, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["totals"]["records"] == 2
    found = json.loads(run("inspect", out, "--json").stdout)
    assert found["kinds"] == {"image_text": 2}
    assert found["mean_characters"] == {"image_text": 4.0}
    assert found["sizes_in_codes"] == {"8 x 8": 2}
    assert found["licenses"] == {"": 1, "MIT": 1}
    text = run("inspect", out).stdout
    assert "records          2\n" in text
    assert "  (none)                   1\n" in text


RAY = ["--set", "engine.kind=ray"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["encode", "records.jsonl"], 2, "--tokenizer and --out are needed"),
        (["encode", "none.toml"], 1, "can't be read"),
        (["encode", "run.toml", "--set", "encode.sise=3"], 1, "Did you mean 'size'?"),
        (["encode", "run.toml", "--set", "encode.size=0"], 1, "size: is 0"),
        (["encode", "run.toml", "--set", "source.path=none.jsonl"], 1, "there is no 'none.jsonl'"),
        (["encode", "run.toml", "--set", "engine.kind=sun"], 1, "must be one of 'local', 'slurm'"),
        (["encode", "run.toml", "--workers", "0", *RAY], 1, "engine.workers: say how many"),
        (["encode", "run.toml", "--set", "encode.precision=tf32"], 1, "tf32 needs a CUDA device"),
        (["encode", "run.toml", "--set", "encode.size=15"], 1, "no multiple of the tokenizer's"),
        (["encode", "run.toml", "--set", "encode.buckets.areas=[]"], 1, "areas: is empty"),
        (["inspect", "."], 1, "not a folder of shards"),
    ],
)
def test_bad_input(place, monkeypatch, arguments, code, words):
    monkeypatch.chdir(place)
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.startswith("error: ") or code == 2
