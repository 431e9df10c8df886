"""Running one evaluation task on a checkpoint.

A task is a function ``(Context) -> None`` that fills ``context.report``. Commands and studies pass
their tasks to `run` by name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

from annotated_types import Ge
from PIL import Image

from liquidmm.errors import CheckpointError, ConfigError, DataError, suggest
from liquidmm.evaluate.journal import Journal
from liquidmm.evaluate.report import Report
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.liquid import DEFAULT_MODEL, load
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.ranges import RangeChecked

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with a description of the work, the number of finished items and the total."""


class Model(Protocol):
    """The part of ``liquidmm.generate.liquid.Liquid`` that tasks use."""

    @property
    def sampling(self) -> SamplingConfig:
        """Default sampling of images."""

    def generate_images(
        self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: SamplingConfig
    ) -> list[Image.Image]:
        """Generate one image per prompt, each with its own seed."""

    def describe_many(self, images: Sequence[Image.Image]) -> list[str]:
        """Caption each image greedily."""

    def ask_many(self, questions: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """Answer each question about its image greedily."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(RangeChecked):
    """What to evaluate, and on which data."""

    checkpoint: Path = DEFAULT_MODEL
    """Checkpoint folder."""
    data: Path | None = None
    """Data folder or file; None uses the default of the task."""
    baseline: Path | None = None
    """Another causal language model to compare with (task text)."""
    out: Path | None = None
    """Folder for answers, images and ``result.json``, in one subfolder per task."""
    limit: Annotated[int, Ge(1)] | None = None
    """Maximum number of items per test; None uses the default of the task."""
    seed: Annotated[int, Ge(0)] = 0
    """Random seed for sampling items and generating images."""
    guidance: float | None = None
    """Guidance scale for images; None uses the checkpoint's."""
    temperature: float | None = None
    """Temperature for images; None uses the checkpoint's."""
    resolution: Annotated[int, Ge(1)] | None = None
    """Width and height to crop images to (task reconstruction); None keeps their size."""
    batch_size: Annotated[int, Ge(1)] = 25
    """Number of images per batch."""
    device: str | None = None
    """Device name; None uses the fastest available."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the weights; "auto" uses a fast one for the device."""
    quantize: Literal["int8"] | None = None
    """Quantization of the weights during generation (CPU only)."""

    @property
    def sampling(self) -> dict[str, float]:
        """Fields of ``SamplingConfig`` that replace the checkpoint's."""
        given = {"guidance": self.guidance, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Input and output of a task."""

    config: EvaluateConfig
    data: Path
    """Data folder or file."""
    limit: int
    """Maximum number of items per test."""
    model: Callable[[], Model]
    """Loads the model on the first call and returns the same model on later calls."""
    journal: Journal
    report: Report
    progress: Progress

    def chunks(self, what: str, items: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
        """Yield batches of items, with the position of the first item, and report progress."""
        size = self.config.batch_size
        for start in range(0, len(items), size):
            self.progress(what, start, len(items))
            yield start, items[start : start + size]
        self.progress(what, len(items), len(items))

    def sampling(self) -> SamplingConfig:
        """Return the checkpoint's sampling settings with this run's changes, and report them.

        Raises:
            ConfigError: A changed value is out of range.
        """
        changes = cast("dict[str, Any]", self.config.sampling)
        sampling = replace(self.model().sampling, **changes)
        self.report.settings["sampling"] = asdict(sampling)
        return sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task that can be run by name."""

    run: Callable[[Context], None]
    """Fills the report of the context."""
    data: Path
    """Default data, relative to the working directory."""
    limit: int
    """Default number of items per test."""
    has_journal: bool = True
    """Whether answers and the result are kept in a subfolder of ``out``; otherwise the task writes
    to ``out`` itself."""


def run(
    name: str,
    tasks: Mapping[str, Task],
    config: EvaluateConfig,
    load_model: Callable[[Path, str | None], Model] | None = None,
    progress: Progress = lambda *_: None,
) -> Report:
    """Run one task.

    Args:
        name: Name of the task.
        tasks: All tasks by name.
        config: What to evaluate.
        load_model: Loads a checkpoint folder onto a device; called only if the task needs the
            model. None uses `load`.
        progress: Reports the progress.

    Returns:
        The results. With ``config.out``, they are also written to ``OUT/TASK/result.json``, and
        answers from an earlier run with the same settings are reused.

    Raises:
        ConfigError: The task is unknown, or ``out`` contains a run with other settings.
        DataError: The data is missing or damaged.
        CheckpointError: The checkpoint cannot be loaded.
    """
    if name not in tasks:
        raise ConfigError(f"evaluate: unknown task {name!r}.{suggest(name, tasks)}")
    if not config.checkpoint.is_dir():
        raise CheckpointError(
            f"{config.checkpoint}: is not a folder. Pass a checkpoint folder with --checkpoint."
        )
    task = tasks[name]
    data, limit = config.data or task.data, config.limit or task.limit
    settings = _settings(config, data, limit)
    folder = config.out / name if config.out is not None and task.has_journal else None
    if load_model is None:
        engine = EngineConfig(quantize=config.quantize)
        load_model = partial(load, dtype=config.dtype, engine=engine)
    context = Context(
        config=config,
        data=data,
        limit=limit,
        model=cache(partial(load_model, config.checkpoint, config.device)),
        journal=Journal(folder, settings),
        report=Report(task=name, settings=dict(settings)),
        progress=progress,
    )
    task.run(context)
    context.journal.finish(context.report)
    return context.report


def require_file(folder: Path, name: str) -> Path:
    """Return the path of a file in the data folder; raise a `DataError` if it does not exist."""
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"{folder}: contains no {name}. Pass another folder with --data; the built-in data is "
            "created by `liquid icons build`."
        )
    return path


def _settings(config: EvaluateConfig, data: Path, limit: int) -> dict[str, Any]:
    """Return all settings that affect the results."""
    is_default = config.checkpoint == DEFAULT_MODEL
    settings: dict[str, Any] = {
        "checkpoint": "default model" if is_default else str(config.checkpoint),
        "fingerprint": _fingerprint(config.checkpoint.rglob("*")),
        "data": str(data),
        "data_fingerprint": _data_fingerprint(data),
        "limit": limit,
        "seed": config.seed,
    }
    optional = {
        "sampling": config.sampling or None,
        "baseline": None if config.baseline is None else str(config.baseline),
        "resolution": config.resolution,
        "dtype": None if config.dtype == "auto" else config.dtype,
        "quantize": config.quantize,
    }
    return settings | {name: value for name, value in optional.items() if value is not None}


def _fingerprint(paths: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files, as twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _data_fingerprint(data: Path) -> str:
    """Return a hash of the data's JSON Lines files, or of the names and sizes of its images."""
    rows = [data] if data.is_file() else list(data.glob("*.jsonl"))
    if rows:
        return _fingerprint(rows)
    listed = sorted(f"{path.name} {path.stat().st_size}" for path in data.rglob("*"))
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:12]
