"""The report and the command line of the scripts."""

import json
import os
import signal

import click
import pytest
from click.testing import CliRunner

from _results import Integers, Names, Result, script
from liquidmm.errors import LiquidError


def test_result_has_figures_and_reasons():
    result = Result(bench="train")
    result.add("a", 12345.678, "tokens/s", "two rounds")
    result.add_or_skip("b", None, "x", "no GPU")
    result.add_ratio("c", 3.0, 2.0)
    result.add_ratio("d", 3.0, None)
    found = result.to_dict()
    assert found["figures"] == {
        "a": {"value": 12345.678, "unit": "tokens/s"},
        "c": {"value": 1.5, "unit": "x"},
    }
    assert found["missing"] == {"b": "no GPU", "d": "one of its two figures is missing"}
    assert result.to_table().splitlines() == [
        "train",
        "  a     12,346 tokens/s  (two rounds)",
        "  c        1.5 x",
        "not measured",
        "  b  no GPU",
        "  d  one of its two figures is missing",
        "settings",
    ]


@script("example")
@click.option("--only", type=Names("speed", "memory"), default="speed,memory")
@click.option("--batches", type=Integers(), default="1,8")
def example(result, only, batches):
    for size in batches:
        result.add(f"b{size}", len(only), "parts")
        if size == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    if only == ("memory",):
        raise LiquidError("memory: is\nunknown.")


def test_script_prints_json_or_table():
    runner = CliRunner()
    assert '"b8": {' in runner.invoke(example, ["--json"]).stdout
    assert runner.invoke(example, ["--batches", "2", "--only", "speed"]).stdout.startswith(
        "example\n  b2          1 parts\n"
    )


def test_script_terminated_prints_result_so_far():
    result = CliRunner().invoke(example, ["--json", "--batches", "2,3,4"])
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["figures"]) == ["b2", "b3"]
    assert "incomplete" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--only", "sped"], 2, "unknown name 'sped'. Did you mean 'speed'"),
        (["--batches", "1,b"], 2, "comma-separated integers such as 1,8, got '1,b'"),
        (["--batches", "0"], 2, "got '0'"),
        (["--only", "memory"], 1, "memory: is unknown."),
    ],
)
def test_script_invalid_input_is_one_line(arguments, code, words):
    result = CliRunner().invoke(example, arguments)
    assert result.exit_code == code
    assert words in result.stderr
