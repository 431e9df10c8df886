"""Jobs of Slurm: what is submitted, and what a task of it does. The cluster is a few scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liquidmm.data.manifest import read_manifest
from liquidmm.encode import EngineConfig, SlurmConfig, encode
from liquidmm.encode.progress import Progress
from liquidmm.errors import ConfigError, DataError, LiquidError

COMMANDS = {
    "sbatch": 'cp "${@: -1}" "$CLUSTER/job"; echo Submitted batch job 7',
    "squeue": 'cat "$CLUSTER/running"',
    "scontrol": "echo here",
    "srun": 'while [ "$1" != launch_pickled_pipeline ]; do shift; done; "$@"',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, command in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\nset -e\n{command}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def run_task(cluster, number):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "here"}
    command = ["bash", cluster / "job"]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def test_an_array_job(whole, tmp_path, cluster, caplog):
    out = tmp_path / "out"
    slurm = SlurmConfig(
        partition="gpu",
        time="01:00:00",
        setup=f"export PATH={Path(sys.executable).parent}:$PATH",
        options={"account": "me"},
    )
    engine = {"kind": "slurm", "workers": 2, "tasks": 2, "memory": 3, "slurm": slurm}
    arguments = whole.arguments(out, **engine)
    assert not encode(*arguments).complete
    assert "submitted job 7 of Slurm with 2 tasks" in caplog.text
    job = (cluster / "job").read_text()
    for option in (
        "array=0-1%2",
        "partition=gpu",
        "time=01:00:00",
        "account=me",
        "cpus-per-task=1",
        "mem-per-cpu=3G",
        "job-name=liquid-encode",
    ):
        assert f"#SBATCH --{option}\n" in job
    assert "qos" not in job
    assert "gpus" not in job

    (cluster / "running").write_text("7 gpu liquid-e me R 0:01 1 here\n")
    with pytest.raises(LiquidError, match="job 7 of Slurm still encodes into this folder"):
        encode(*arguments)
    (cluster / "running").write_text("")

    Progress(out / ".encode/counts").stop(DataError("too many"))  # told once, by the next command
    with pytest.raises(DataError, match="too many"):
        encode(*arguments)

    run_task(cluster, 1)
    assert len(list(out.glob("shard-*.arrow"))) == 15
    rest = whole.arguments(out, **engine | {"tasks": 1})
    assert not encode(*rest).complete  # submits the rest
    run_task(cluster, 0)
    assert read_manifest(out).complete
    assert encode(*arguments).complete
    whole.assert_same(out)


def test_no_slurm(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = EngineConfig(kind="slurm", workers=1)
    with pytest.raises(ConfigError, match="slurm, but there is no sbatch here"):
        encode(whole.source, whole.tokenizer, tmp_path / "out", whole.config, engine)
