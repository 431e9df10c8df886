"""`liquid bench train`: our training beside the alternatives, on the same model and data.

Contract: the parts are measured one after the other, each by sides that take turns; a part that
can't run on this device says so in `missing`. On a CPU the whole takes less than 10 minutes on two
cores with the default settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from liquidmm.bench.job import Job
from liquidmm.bench.loss import LossSizes, measure_loss
from liquidmm.bench.report import Result, machine
from liquidmm.bench.sizes import FAST, SHAPES, check_fast_path, job_of, measure_size, shape_of
from liquidmm.bench.speed import measure_efficiency, measure_speed
from liquidmm.config import load_run
from liquidmm.errors import ConfigError, suggest
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.runtime import resolve_device
from liquidmm.train.config import LoopConfig, TrainConfig
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig

PARTS = ("efficiency", "speed", "loss", "sizes")
"""What can be measured, in this order."""
FAST_ICONS = replace(FAST, activation_checkpointing=False)
"""How a checkpoint is computed on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBench:
    """What to measure."""

    run: Path = Path("recipes/icons/answers.toml")
    """Run file that says what is drawn: sources, weights, row length, rendering and rows of a
    step."""
    length: int = 0
    """Ids in a row; 0: the run's. A step has as many ids, a sequence is no longer than before."""
    data: Path = Path("data/shards")
    """Folder in which the run's folders of shards lie."""
    checkpoint: Path = DEFAULT_MODEL
    """Checkpoint that is trained."""
    device: str | None = None
    """Device; None takes the fastest."""
    seconds: float = 120.0
    """Time for the laps of each comparison, about."""
    parts: tuple[str, ...] = PARTS
    """Which of `PARTS` are measured."""
    sizes: tuple[str, ...] = ()
    """Shapes that are trained on a GPU."""
    steps: int = 64
    """Optimizer steps whose rows the efficiency is counted on."""
    sequences: int = 16
    """Sequences in a padded batch."""
    loss: LossSizes = field(default_factory=LossSizes)
    """Sizes of the loss."""

    def __post_init__(self) -> None:
        """Check the ranges and names."""
        if not self.seconds > 0:
            raise ConfigError(f"seconds: must be above 0 ({self.seconds}).")
        for name in ("steps", "sequences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1 ({getattr(self, name)}).")
        if self.length < 0:
            raise ConfigError(f"length: must be 0 or more ({self.length}).")
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--only: '{part}' is unknown.{suggest(part, PARTS)}")
        for size in self.sizes:
            shape_of(size)


def bench_train(config: TrainBench, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Measure.

    Args:
        config: What.
        progress: Told what is being done.

    Returns:
        The figures, and the reasons of those that are lacking.

    Raises:
        ConfigError: The run file can't be read, or the device isn't here.
        CheckpointError: The checkpoint can't be loaded.
        DataError: A folder of shards can't be read or doesn't fit the checkpoint.
    """
    device = resolve_device(config.device)
    result = Result(bench="train", settings=machine(device))
    if {"efficiency", "speed"} & set(config.parts):
        _measure_icons(result, config, str(device), progress)
    if "loss" in config.parts:
        measure_loss(result, config.loss, str(device), config.seconds, progress)
    if "sizes" in config.parts:
        for name in SHAPES:
            if name not in config.sizes:
                reason = f"not asked for: --sizes {name}"
                result.lacks(f"{name}_tokens_per_second", reason)
            elif device.type != "cuda":
                result.lacks(f"{name}_tokens_per_second", f"needs a CUDA device ({device})")
            else:
                job = job_of(shape_of(name), str(device))
                measure_size(result, job, config.seconds, config.sequences, progress)
    return result


def _measure_icons(
    result: Result, config: TrainBench, device: str, progress: Callable[[str], None]
) -> None:
    """Measure the checkpoint on the run's data."""
    job = icon_job(config, device)
    shipped = config.checkpoint == DEFAULT_MODEL
    result.settings["run"] = str(config.run)
    result.settings["checkpoint"] = "default model" if shipped else str(config.checkpoint)
    progress(f"packing {config.steps * job.loop.global_batch_size:,} rows")
    batches = measure_efficiency(result, job, config.steps, config.sequences)
    if "speed" not in config.parts:
        return
    reason = check_fast_path(result, job, "", progress) if job.model == FAST_ICONS else None
    if reason is not None:
        result.lacks("useful_tokens_speedup_vs_padded", reason)
        return
    measure_speed(result, job, config.sequences, batches, config.seconds, progress=progress)


def icon_job(config: TrainBench, device: str) -> Job:
    """Make the training of the checkpoint on the run's data, with AdamW and a small constant rate.

    Args:
        config: What to measure.
        device: Where.

    Returns:
        The job; on a GPU in bfloat16 with our fast kernels, elsewhere in float32.

    Raises:
        ConfigError: The run file can't be read.
    """
    run = load_run(TrainConfig, config.run)
    sources = tuple(
        replace(source, path=config.data / source.path.name) for source in run.data.sources
    )
    gpu = device.startswith("cuda")
    loop = LoopConfig(
        steps=1,
        global_batch_size=run.train.global_batch_size,
        micro_batch_size=run.train.micro_batch_size,
        precision="bfloat16" if gpu else "float32",
    )
    data = replace(run.data, sources=sources, eval=())
    if config.length:
        rows = max(1, run.train.global_batch_size * data.seq_len // config.length)
        loop = replace(loop, global_batch_size=rows, micro_batch_size=0)
        data = replace(
            data,
            seq_len=config.length,
            max_document_tokens=min(data.packing.longest, config.length),
        )
    run = replace(
        run,
        checkpoint=config.checkpoint,
        data=data,
        train=loop,
        optim=OptimConfig(lr=1e-5),
    )
    model = FAST_ICONS if gpu else ModelConfig()
    return Job(source=run, loop=loop, model=model, optim=run.optim, device=device)
