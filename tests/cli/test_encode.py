import json
import os

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
    """An image tokenizer, two images with records, and a run file."""
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
        resolution = 16
        [workers]
        num = 1
        """
    )
    return place


def test_encode_run_file(place):
    result = run("encode", place / "run.toml")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{place / 'from_run'}\n"
    assert "1 records (1 image_text), 1 images" in result.stderr
    assert read_shards(place / "from_run")[0].image_codes[0].shape == (8, 8)


def test_encode_options_override_the_run_file(place):
    out = place / "both"
    result = run(
        "encode", place / "run.toml", "-o", out, "--resolution", 8, "--set", "source.splits=[]"
    )
    assert result.exit_code == 0, result.output
    assert [sample.image_codes[0].shape for sample in read_shards(out)] == [(4, 4), (4, 4)]


def test_encode_source_with_options_then_inspect(place):
    out = place / "direct"
    options = (
        "--tokenizer",
        place / "tokenizer",
        "-o",
        out,
        "--resolution",
        "16",
        "--workers",
        "1",
    )
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


def test_encode_tasks_finish_the_folder(place):
    out = place / "tasks"
    options = ("-o", out, "--set", "source.splits=[]", "--set", "encode.samples_per_shard=1")
    for index in ("1", "1", "0"):
        result = run(
            "encode", place / "run.toml", *options, "--task", index, "--num-tasks", 2, "--json"
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["complete"] == (index == "0")
    assert len(read_shards(out)) == 2
    assert not (out / ".encode").exists()


def test_encode_slurm_table_submits_the_same_command(place, monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text('#!/bin/bash\ncat "${@: -1}" > "$0.script"; echo 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = "slurm={num_tasks=3, options={partition='gpu'}}"
    arguments = ("encode", place / "run.toml", "-o", place / "slurm", "--set", slurm)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    script = (tmp_path / "sbatch.script").read_text()
    assert "#SBATCH --array=0%1\n#SBATCH" in script
    assert "#SBATCH --partition=gpu\n" in script
    task = '--task "$SLURM_ARRAY_TASK_ID" --num-tasks 3'
    assert f"liquid encode {place}/run.toml --out {place}/slurm --set " in script
    assert script.endswith(f"{task}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["encode", "records.jsonl"], 2, "--tokenizer and --out"),
        (["encode", "none.toml"], 1, "none.toml: "),
        (["encode", "run.toml", "--set", "encode.resolutoin=3"], 1, "Did you mean 'resolution'?"),
        (["encode", "run.toml", "--set", "encode.resolution=0"], 1, "encode.resolution: "),
        (["encode", "run.toml", "--set", "source.path=none.jsonl"], 1, "none.jsonl"),
        (["encode", "run.toml", "--set", "engine.kind=ray"], 1, "engine: unknown key. It is now"),
        (["encode", "run.toml", "--workers", "0", "--set", "ray={}"], 1, "workers.num: "),
        (["encode", "run.toml", "--task", "1"], 2, "--num-tasks"),
        (["encode", "run.toml", "--num-tasks", "1"], 2, "--task"),
        (["encode", "run.toml", "--task", "-1", "--num-tasks", "1"], 2, "--task"),
        (["encode", "run.toml", "--task", "0", "--num-tasks", "0"], 2, "--num-tasks"),
        (["encode", "run.toml", "--task", "2", "--num-tasks", "2"], 1, "task: expected"),
        (["encode", "run.toml", "--set", "encode.precision=tf32"], 1, "precision: tf32"),
        (["encode", "run.toml", "--set", "encode.resolution=15"], 1, "resolution: "),
        (["encode", "run.toml", "--set", "encode.buckets.areas=[]"], 1, "areas: "),
        (["inspect", "."], 1, "error: "),
    ],
)
def test_encode_bad_input_is_reported(place, monkeypatch, arguments, code, words):
    monkeypatch.chdir(place)
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.startswith("error: ") or code == 2
