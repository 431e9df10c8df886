"""Slurm jobs: what is submitted, and what its tasks do. The cluster is a few shell scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liquidmm.data.manifest import read_manifest
from liquidmm.encode import EncodeConfig, SlurmConfig, WorkerConfig
from liquidmm.encode.on_slurm import submit
from liquidmm.errors import ConfigError, LiquidError

COMMANDS = {
    "sbatch": 'cp "${@: -1}" "$CLUSTER/job"; echo 7',
    "squeue": 'cat "$CLUSTER/running"',
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


@pytest.fixture
def job(whole, tmp_path):
    """Return the run file of a job, and a function that submits it."""
    out = tmp_path / "out"
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        tokenizer = "{whole.tokenizer.path}"
        out = "{out}"
        device = "cpu"
        [source]
        path = "{whole.source.path}"
        [encode]
        resolution = 96
        samples_per_shard = 2
        batch_size = 4
        """
    )
    config = EncodeConfig(
        source=whole.source,
        tokenizer=whole.tokenizer.path,
        out=out,
        encode=whole.config,
        workers=WorkerConfig(num=2),
    )

    def send(setup="", **options):
        slurm = SlurmConfig(num_tasks=3, setup=setup, options=options)
        return submit(config, slurm, ["liquid", "encode", str(path)])

    return out, send


def run_task(cluster, number):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
    command = ["bash", cluster / "job"]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_array_job_is_submitted_and_finished(whole, job, cluster, caplog):
    out, send = job
    setup = f"export PATH={Path(sys.executable).parent}:$PATH"
    assert not send(setup, partition="gpu", time="01:00:00").complete
    assert "submitted Slurm job 7 with 3 tasks" in caplog.text
    script = (cluster / "job").read_text()
    for option in (
        "job-name=liquid-encode",
        "array=0,1,2%2",
        "cpus-per-task=1",
        "partition=gpu",
        "time=01:00:00",
    ):
        assert f"#SBATCH --{option}\n" in script

    (cluster / "running").write_text("7 gpu liquid-e me R 0:01 1 here\n")
    with pytest.raises(LiquidError, match="Slurm job 7 .*scancel 7"):
        send(setup)
    (cluster / "running").write_text("")

    run_task(cluster, 1)
    assert len(list(out.glob("shard-*.arrow"))) == 10
    assert not send(setup).complete  # submits the rest
    assert "#SBATCH --array=0,2%2\n" in (cluster / "job").read_text()
    run_task(cluster, 0)
    run_task(cluster, 2)
    assert read_manifest(out).complete
    assert send(setup).complete
    whole.assert_same(out)


def test_no_slurm_is_reported(job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="slurm: .*sbatch"):
        job[1]()


def test_sbatch_failure_is_reported(job, cluster):
    (cluster / "sbatch").write_text("#!/bin/bash\necho invalid partition >&2; exit 3\n")
    with pytest.raises(LiquidError, match=r"sbatch: .*3 \(invalid partition\).*slurm\.sh"):
        job[1]()
