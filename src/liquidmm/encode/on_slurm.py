"""A run as a Slurm array job, in which each task runs `liquid encode --task`.

Only tasks with missing shards are submitted. The output folder stores the id of the last job, so
its shards are not submitted again while it runs.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from liquidmm.data.manifest import Manifest, read_manifest
from liquidmm.data.shard_writer import begin, count_records
from liquidmm.encode.config import EncodeConfig, SlurmConfig
from liquidmm.encode.progress import Counts
from liquidmm.encode.run import check_budget, finish_folder
from liquidmm.encode.setup import WORK_FOLDER, open_task
from liquidmm.encode.worker import TokenizerFile
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.files import write_text
from liquidmm.runtime import get_logger

_JOB = "slurm-job"
_SCRIPT = "slurm.sh"


def submit(config: EncodeConfig, slurm: SlurmConfig, command: Sequence[str]) -> Manifest:
    """Submit an array job for the missing shards, or finish the folder if there are none.

    ``command`` is that of each task, without ``--task`` and ``--num-tasks``.

    Returns:
        The manifest, which is complete if nothing was submitted.

    Raises:
        ConfigError: This machine cannot submit Slurm jobs; also see `encode`.
        DataError: See `encode`.
        LiquidError: The previous job is still running, or sbatch failed.
    """
    tokenizer = TokenizerFile(path=config.tokenizer, device=config.device)
    task, _ = open_task(
        config.source, tokenizer, config.out, config.encode, config.workers, elsewhere=True
    )
    missing = begin(config.out, task.provenance, len(task.shards))
    if not missing:
        return finish_folder(task)
    folder = config.out / WORK_FOLDER
    _check_ended(folder)
    check_budget(task, Counts.of(count_records(config.out)), task.budget.min_records)
    indices = sorted({number % slurm.num_tasks for number in missing})
    limit = f"%{config.workers.num}" if config.workers.num else ""
    options = {
        "job-name": "liquid-encode",
        "array": ",".join(map(str, indices)) + limit,
        "output": str(folder / "slurm-%A_%a.log"),
        "cpus-per-task": str(max(config.workers.threads, config.workers.decode_threads)),
        **slurm.options,
    }
    script = "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items()),
            slurm.setup,
            f'{shlex.join(command)} --task "$SLURM_ARRAY_TASK_ID" --num-tasks {slurm.num_tasks}',
            "",
        ]
    )
    write_text(folder / _SCRIPT, script)
    job = _sbatch(folder / _SCRIPT)
    write_text(folder / _JOB, job)
    get_logger(__name__).info(
        f"submitted Slurm job {job} with {len(indices)} tasks; logs are in {folder}. When the job "
        "has ended, run the same command again: it submits missing shards, or finishes the folder"
    )
    return read_manifest(config.out)


def _sbatch(script: Path) -> str:
    command = ["sbatch", "--parsable", str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise ConfigError(
            "slurm: sbatch was not found. Run the command on a machine that can submit jobs."
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise LiquidError(f"sbatch: failed with {done.returncode} ({reason}). Check {script}.")
    return done.stdout.strip().partition(";")[0]


def _check_ended(folder: Path) -> None:
    try:
        job = (folder / _JOB).read_text(encoding="ascii").strip()
        command = ["squeue", "--noheader", "--jobs", job]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:  # no earlier job, or not from this machine
        return
    if found.returncode == 0 and found.stdout.strip():
        raise LiquidError(
            f"Slurm job {job} is still writing to this folder. Wait, or cancel it (scancel {job})."
        )
