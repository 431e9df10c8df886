"""`liquid bench train`: one result, whatever could be measured."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from liquidmm.bench.report import Result
from liquidmm.bench.train import TrainBench, bench_train
from liquidmm.cli import main
from liquidmm.errors import ConfigError


def run(*arguments):
    return CliRunner().invoke(main, ["bench", "train", *map(str, arguments)])


def arguments(config):
    return ["--run", config.run, "--data", config.data, "--checkpoint", config.checkpoint]


def test_json_has_every_figure(config):
    small = ["--seconds", 0.5, "--steps", 2, "--sequences", 2, "--device", "cpu"]
    loss = ["--tokens", 16, "--vocabulary", 40, "--hidden", 4]
    command = ["-m", "liquidmm", "bench", "train", "--json"]
    done = subprocess.run(
        list(map(str, [sys.executable, *command, *arguments(config), *small, *loss])),
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == {"bench", "figures", "notes", "missing", "settings"}
    for name in (
        "packing_efficiency",
        "padded_efficiency",
        "useful_tokens_speedup_vs_padded",
        "useful_tokens_per_second",
        "padded_useful_tokens_per_second",
        "loss_peak_memory_ratio",
        "loss_speed_ratio",
    ):
        assert found["figures"][name]["value"] > 0, name
        assert found["figures"][name]["unit"]
    assert all(set(figure) == {"value", "unit"} for figure in found["figures"].values())
    assert all("not asked for" in reason for reason in found["missing"].values())
    assert len(found["missing"]) == 3
    settings = found["settings"]
    assert settings["device"] == "cpu"
    assert settings["speed"]["padded_batch_sequences"] == 2
    ours, theirs = (settings["speed"][name] for name in ("ids_in_a_step", "padded_ids_in_a_step"))
    assert 0.5 < ours / theirs < 2
    assert settings["loss"]["timed_tokens"] == 16
    assert "training, packed and padded by turns" in done.stderr


def test_table(config):
    result = run(*arguments(config), "--only", "efficiency,sizes", "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("train\n  packing_efficiency")
    assert "not measured\n  135m_tokens_per_second  not asked for: --sizes 135m" in result.stdout
    assert "settings" in result.stdout


def test_sizes_need_a_gpu(config):
    found = bench_train(replace(config, parts=("sizes",), sizes=("1b",)))
    assert "needs a CUDA device" in found.missing["1b_tokens_per_second"]
    assert found.figures == {}


def test_a_figure_is_never_made_up():
    result = Result(bench="train")
    result.number("a", 12345.678, "ids/s", "two rounds")
    result.lacks("b", "no GPU")
    assert result.to_dict()["figures"] == {"a": {"value": 12345.678, "unit": "ids/s"}}
    assert result.to_table().splitlines() == [
        "train",
        "  a     12,346 ids/s  (two rounds)",
        "not measured",
        "  b  no GPU",
        "settings",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"parts": ("sped",)}, "Did you mean 'speed'"),
        ({"sizes": ("2b",)}, "'2b' is unknown"),
        ({"seconds": 0.0}, "above 0"),
        ({"sequences": 0}, "at least 1"),
    ],
)
def test_bad_settings(values, words):
    with pytest.raises(ConfigError, match=words):
        TrainBench(**values)


def test_a_mistake_is_one_line(config, tmp_path):
    result = run("--run", tmp_path / "none.toml", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    result = run("--run", config.run, "--data", tmp_path, "--checkpoint", config.checkpoint)
    assert result.exit_code == 1
    assert str(tmp_path / "drawn") in result.stderr
