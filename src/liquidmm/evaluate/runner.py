"""The table of tasks and the one way to run them.

Adding a task is one function ``(Context) -> None`` that fills ``context.report``, and one line in
``TASKS``.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.evaluate.captions import captions
from liquidmm.evaluate.fidelity import prompt_fidelity
from liquidmm.evaluate.reconstruction import contact_sheet, reconstruction
from liquidmm.evaluate.report import Context, Journal, Model, Report
from liquidmm.evaluate.scenes import scenes
from liquidmm.evaluate.text import text
from liquidmm.generate.backends import Quantization
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.liquid import DEFAULT_MODEL, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One line of the table."""

    run: Callable[[Context], None]
    """Fills the context's report."""
    data: Path
    """Data folder if none is given, relative to the working folder."""
    n: int
    """Size of each sample if none is given."""
    keeps: bool = True
    """Whether answers and the result are kept in a subfolder of --out; else the task writes into
    --out itself."""


TASKS = {
    "prompt-fidelity": Task(run=prompt_fidelity, data=Path("data/icons"), n=200),
    "captions": Task(run=captions, data=Path("data/icons"), n=300),
    "scenes": Task(run=scenes, data=Path("data/scenes"), n=1000),
    "text": Task(run=text, data=Path("data/text"), n=300),
    "reconstruction": Task(run=reconstruction, data=Path("data/icons"), n=500),
    "contact-sheet": Task(run=contact_sheet, data=Path("data/icons"), n=12, keeps=False),
}
"""Name -> task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    checkpoint: Path = DEFAULT_MODEL
    """Checkpoint folder."""
    data: Path | None = None
    """Data folder; None is the task's own."""
    baseline: Path | None = None
    """Another causal language model, for the text task; None compares with none."""
    out: Path | None = None
    """Folder for answers, pictures and ``result.json``, one subfolder for each task; None keeps
    nothing."""
    n: int | None = None
    """Size of each sample; None is the task's own."""
    seed: int = 0
    """Seed of samples and pictures."""
    guidance: float | None = None
    """Guidance of drawn pictures; None is the checkpoint's own."""
    temperature: float | None = None
    """Temperature of drawn pictures; None is the checkpoint's own."""
    batch: int = 25
    """Pictures at a time."""
    device: str | None = None
    """Device name; None chooses."""
    dtype: str = "auto"
    """dtype of the weights: "float32", "bfloat16", "float16" or "auto"."""
    quantize: Quantization | None = None
    """Quantization of the weights; None keeps their dtype."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: A number is out of its range.
        """
        for name, value in (("n", self.n), ("batch", self.batch)):
            if value is not None and value < 1:
                raise ConfigError(f"evaluate.{name}: {value} is less than 1. Give at least 1.")
        if self.seed < 0:
            raise ConfigError(f"evaluate.seed: {self.seed} is negative. Give 0 or more.")


def run(
    name: str,
    config: EvaluateConfig,
    load_model: Callable[[Path, str | None], Model] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Run one task.

    Args:
        name: A key of ``TASKS``.
        config: What to evaluate, and on what.
        load_model: Loads the model from the checkpoint folder onto the named device; called at most
            once, and only if the task needs it. None is `load` with the wanted weights.
        progress: Told what is being done, how many are done, and of how many.

    Returns:
        The figures. With ``config.out`` they are also in ``OUT/TASK/result.json``; answers kept
        there by an earlier run with the same settings are not made again.

    Raises:
        ConfigError: The task is unknown, or ``out`` holds a run with other settings.
        DataError: The task's data is missing or broken.
        CheckpointError: The checkpoint cannot be loaded.
    """
    if name not in TASKS:
        raise ConfigError(f"evaluate: no task {name!r}.{suggest(name, TASKS)}")
    task = TASKS[name]
    if not config.checkpoint.is_dir():
        raise CheckpointError(
            f"{config.checkpoint}: no such folder. Give a checkpoint folder with --checkpoint."
        )
    data = config.data or task.data
    n = config.n or task.n
    settings: dict[str, Any] = {
        "checkpoint": "default model"
        if config.checkpoint == DEFAULT_MODEL
        else str(config.checkpoint),
        "fingerprint": _fingerprint(config.checkpoint.rglob("*")),
        "data": str(data),
        "data_fingerprint": _fingerprint(data.glob("*.jsonl")),
        "n": n,
        "seed": config.seed,
    }
    sampling = {
        name: value
        for name, value in (("guidance", config.guidance), ("temperature", config.temperature))
        if value is not None
    }
    if sampling:
        settings["sampling"] = sampling
    if config.baseline is not None:
        settings["baseline"] = str(config.baseline)
    for name, value in (("dtype", config.dtype), ("quantize", config.quantize)):
        if value not in (None, "auto"):
            settings[name] = value
    if load_model is None:
        load_model = partial(
            load, dtype=config.dtype, engine=EngineConfig(quantize=config.quantize)
        )
    report = Report(task=name, settings=dict(settings))
    folder = config.out / name if config.out is not None and task.keeps else None
    context = Context(
        data=data,
        n=n,
        seed=config.seed,
        batch=config.batch,
        checkpoint=config.checkpoint,
        baseline=config.baseline,
        out=config.out,
        device=config.device,
        sampling=sampling,
        model=cache(lambda: load_model(config.checkpoint, config.device)),
        journal=Journal(folder, settings),
        report=report,
        progress=progress,
    )
    task.run(context)
    context.journal.finish(report)
    return report


def _fingerprint(paths: Iterable[Path]) -> str:
    """Twelve hex digits that change with the content and the name of any of some files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
