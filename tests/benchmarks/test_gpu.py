"""gpu.sh: its parts, and how it resumes, with a stand-in for Python."""

import os
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exit "${NO_CUDA:-0}"; fi
echo "$*" >>"$LOG"
echo '{"figures": {}}'
case "$*" in *loss*) exit 1 ;; esac
"""


@pytest.fixture
def gpu(tmp_path):
    """Run gpu.sh with a stand-in for Python, which fails in the part loss."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    variables = {"PYTHON": python, "OUT": tmp_path / "out", "LOG": tmp_path / "log"}
    environment = os.environ | {name: str(path) for name, path in variables.items()}

    def run(*arguments, **changes):
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment | changes,
        )

    return run


def test_gpu_list_prints_parts(gpu):
    lines = gpu("--list").stdout.splitlines()
    assert lines[0].split()[0] == "train-135m"
    assert all(0 < int(line.split()[1]) <= 8 for line in lines)


def test_gpu_options_are_valid():
    commands = re.findall(r"\| (\w+)\.py (.*)", SCRIPT.read_text(encoding="utf-8"))
    assert len(commands) == 11
    for name, options in commands:
        arguments = [*options.split(), "--device", "cuda", "--json"]
        import_module(name).main.make_context(name, arguments)


def test_gpu_runs_resumes_and_keeps_partial_results(gpu, tmp_path):
    first = gpu("encode", "loss")
    assert first.returncode == 1
    assert first.stdout == f"{tmp_path / 'out' / 'encode.json'}\n"
    assert "loss failed" in first.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["encode.json", "loss.partial.json"]
    assert gpu("encode").returncode == 0
    commands = (tmp_path / "log").read_text().splitlines()
    assert [command.split()[0] for command in commands] == [
        "benchmarks/data.py",
        "benchmarks/train.py",
    ]


def test_gpu_unknown_part_is_usage_error(gpu):
    done = gpu("encoding")
    assert done.returncode == 2
    assert "unknown part 'encoding'" in done.stderr


def test_gpu_without_cuda_is_one_line(gpu, tmp_path):
    done = gpu("encode", NO_CUDA="1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_stand_in_has_every_name_in_use():
    source = SCRIPT.parents[1] / "src" / "liquidmm"
    found = {
        name.strip()
        for file in source.rglob("*.py")
        for names in re.findall(
            r"^from annotated_types import (.+)$", file.read_text("utf-8"), re.M
        )
        for name in names.split(",")
    }
    stand_in = (SCRIPT.parent / "stand_ins" / "annotated_types.py").read_text(encoding="utf-8")
    assert found <= set(re.findall(r"^class (\w+)", stand_in, re.MULTILINE))
