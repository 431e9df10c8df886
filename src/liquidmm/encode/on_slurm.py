"""The tasks of a job as an array job of Slurm.

Contract: `run` submits and returns; the task that writes the last shard finishes the folder. What
was submitted is remembered beside the log files, so that it is not submitted again while it runs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from datatrove.executor import SlurmPipelineExecutor
from datatrove.utils.logging import logger

from liquidmm.encode.config import EngineConfig
from liquidmm.encode.engine import EncodeStep
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.runtime import get_logger

_SUBMITTED = "slurm-job"


class SlurmTasks(SlurmPipelineExecutor):  # type: ignore[misc]
    """Submits tasks as an array job."""

    def __init__(self, step: EncodeStep, engine: EngineConfig, workers: int, tasks: int) -> None:
        """Set up.

        Args:
            step: What is done.
            engine: What a worker needs, and what Slurm wants to know.
            workers: Tasks that run at the same time.
            tasks: Tasks that the shards are divided among.
        """
        slurm = engine.slurm
        super().__init__(
            [step],
            tasks=tasks,
            workers=workers,
            time=slurm.time,
            partition=slurm.partition,
            qos=slurm.qos,
            cpus_per_task=max(engine.threads, step.job.decoders),
            mem_per_cpu_gb=engine.memory,
            gpus_per_task=engine.gpus,
            job_name="liquid-encode",
            env_command=slurm.setup,
            sbatch_args=slurm.options,
            max_array_size=slurm.max_array,
            logging_dir=str(step.job.progress.parent),
            skip_completed=False,  # the shards tell what is done
        )

    def launch_job(self) -> None:
        """Submit the array job.

        Raises:
            ConfigError: This machine has no Slurm.
            LiquidError: Slurm refused.
        """
        logger.disable("datatrove")
        try:
            super().launch_job()
        except FileNotFoundError as error:
            raise ConfigError(
                f"engine.kind: slurm, but there is no {error.filename} here. Start it on a machine "
                "that submits jobs."
            ) from None
        except subprocess.CalledProcessError as error:
            raise LiquidError(
                f"{error.cmd[0]}: ended with {error.returncode}. See what it said above, and "
                f"{self.logging_dir.resolve_paths('launch_script.slurm')}."
            ) from None
        with self.logging_dir.open(_SUBMITTED, "w") as file:
            file.write(str(self.job_id))
        get_logger(__name__).info(
            f"submitted job {self.job_id} of Slurm with {self.tasks} tasks. When it has ended, run "
            "the same command again: it says what there is, and submits what is left"
        )

    def launch_merge_stats(self) -> None:
        """Submit nothing more: the shards tell what was done."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return the options of sbatch; an empty one is left to the cluster."""
        options: dict[str, Any] = super().get_sbatch_args(max_array)
        empty = [name for name in ("partition", "qos") if not options.get(name)]
        return {name: value for name, value in options.items() if name not in empty}


def check_ended(folder: Path) -> None:
    """Make sure that the job submitted last has ended.

    Args:
        folder: Where its log files are.

    Raises:
        LiquidError: It runs, or waits.
    """
    try:
        job = (folder / _SUBMITTED).read_text(encoding="ascii").strip()
        command = ["squeue", "--noheader", "--jobs", job]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:  # nothing was submitted, or not from here
        return
    if found.returncode == 0 and found.stdout.strip():
        raise LiquidError(
            f"job {job} of Slurm still encodes into this folder. Wait for it, or scancel it."
        )
