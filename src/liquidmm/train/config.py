"""The run file of `liquid train`: what to train, on what, for how long, and what to show.

Contract: every key has its one default here or beside its owner (`Source`, `ExampleConfig`,
`OptimConfig`); checks of one table stand in that table, checks across tables in `TrainRun`. Nothing
is opened or loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from liquidmm.config import to_dict
from liquidmm.data.examples import ExampleConfig
from liquidmm.data.mixture import Source, check_sources
from liquidmm.data.packing import PackingConfig
from liquidmm.errors import ConfigError
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig
from liquidmm.train.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRun:
    """Where sequences come from."""

    sources: tuple[Source, ...]
    """What is trained on."""
    validation: tuple[Source, ...] = ()
    """What is measured along the way, each source by itself; the weight has no meaning here."""
    length: int = 2048
    """Ids in a row; sequences are packed into rows and never see each other."""
    context: int = 0
    """Ids of the longest sequence; 0: as long as a row. Rows may be longer than what the model has
    positions for, which fills them better; sequences may not."""
    too_long: Literal["error", "leave_out"] = "error"
    """What is done with a record that has a picture and is longer: stop the run with its name, or
    leave it out and count it. Text without pictures is cut."""
    window: int = 512
    """Examples that are packed together. More fill rows better, and take longer at the start."""
    workers: int = 0
    """Processes of each rank that make rows ahead; 0 makes them between steps. The rows are the
    same, whatever the number."""
    render: ExampleConfig = field(default_factory=ExampleConfig)
    """The random choices of rendering; validation has no guidance dropout."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_sources(self.sources)
        if self.length < 8:
            raise ConfigError(f"length: must be at least 8 ({self.length}).")
        if self.workers < 0:
            raise ConfigError(f"workers: must be 0 or more ({self.workers}).")
        self.packing  # noqa: B018 - checks the rest

    @property
    def packing(self) -> PackingConfig:
        """How rows are filled."""
        return PackingConfig(
            seq_len=self.length,
            max_document_tokens=self.context,
            packing_buffer=self.window,
            overlong="drop" if self.too_long == "leave_out" else "error",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopRun:
    """How long, how large and how often."""

    steps: int
    """Optimizer steps of the run."""
    batch_rows: int = 16
    """Rows of one optimizer step, on all ranks together."""
    micro_batch_rows: int = 0
    """Rows a rank computes at a time; 0 computes its rows of a step at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights and optimizer stay in float32."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every: int = 0
    """Steps between two validations; 0 validates only at the end."""
    validate_rows: int = 32
    """Rows of each validation source, on all ranks together."""
    sample_every: int = 0
    """Steps between two sample grids; 0 draws only at the end."""
    save_every: int = 500
    """Steps between two saves; 0 saves only when the run is stopped."""
    keep: int = 2
    """How many of the last saves are kept."""
    spike: float = 6.0
    """Report a loss that lies so many standard deviations above the mean of the steps before; 0
    reports none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "batch_rows", "log_every", "validate_rows", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1 ({getattr(self, name)}).")
        for name in ("micro_batch_rows", "validate_every", "sample_every", "save_every", "spike"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more ({getattr(self, name)}).")
        if self.micro_batch_rows and self.batch_rows % self.micro_batch_rows:
            raise ConfigError(
                f"micro_batch_rows: must divide batch_rows ({self.micro_batch_rows} of "
                f"{self.batch_rows})."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRun:
    """What is drawn along the way."""

    prompts: tuple[str, ...] = ()
    """Captions of the grid; none draws nothing. What the model says about each drawing stands
    beside it, in a text file."""
    questions: tuple[str, ...] = ()
    """What the model is asked without a picture; question and answer go to the same file."""
    guidance: float = 7.0
    """Guidance of the grid."""
    seed: int = 0
    """Seed of the first picture; the next ones count up from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """One training of the language model."""

    checkpoint: Path
    """Liquid checkpoint to start from, as `liquid expand` writes it."""
    out: Path
    """Folder of this run: metrics, samples, saves and `final`."""
    data: DataRun
    """Where sequences come from."""
    train: LoopRun
    """How long, how large and how often."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """What of the model is trained, and how it is computed."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several ranks share the model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule and stabilizers."""
    sample: SampleRun = field(default_factory=SampleRun)
    """What is drawn along the way."""
    trackers: tuple[Literal["trackio", "wandb"], ...] = ()
    """Where figures go besides metrics.jsonl and TensorBoard."""
    seed: int = 0
    """Seed of the order of the data and of guidance dropout."""
    device: str | None = None
    """Device to train on; None takes the fastest."""
    final_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights in `final`."""

    def __post_init__(self) -> None:
        """Check what concerns two tables."""
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more ({self.seed}).")
        if self.optim.warmup >= self.train.steps:
            raise ConfigError(
                f"optim.warmup: must be below train.steps ({self.optim.warmup} of "
                f"{self.train.steps})."
            )
        if self.out.resolve() == self.checkpoint.resolve():
            raise ConfigError(f"out: is the checkpoint itself ({self.out}). Choose another folder.")

    def rows_of_rank(self, ranks: int) -> int:
        """Give the rows of one step that each of so many ranks computes.

        Raises:
            ConfigError: The rows can't be shared evenly.
        """
        for name in ("batch_rows", "validate_rows"):
            rows = getattr(self.train, name)
            if rows % ranks:
                raise ConfigError(
                    f"train.{name}: {rows} rows can't be shared evenly by {ranks} ranks. Choose a "
                    "multiple."
                )
        rows = self.train.batch_rows // ranks
        micro = self.train.micro_batch_rows
        if micro and rows % micro:
            raise ConfigError(
                f"train.micro_batch_rows: must divide the rows of a rank ({micro} of {rows}: "
                f"{self.train.batch_rows} rows on {ranks} ranks)."
            )
        return rows


# Keys that say what is shown and kept and how it is computed, never what is learnt: a resumed run
# may change them. (Those that change the order of additions change the last digits.)
_FREE = {
    "out",
    "device",
    "final_dtype",
    "sample",
    "trackers",
    "parallel",
    "model.attention",
    "model.checkpoint_activations",
    "model.compile",
    "data.validation",
    "data.workers",
    "train.micro_batch_rows",
    "train.log_every",
    "train.validate_every",
    "train.validate_rows",
    "train.sample_every",
    "train.save_every",
    "train.keep",
    "train.spike",
}


def differences(old: dict[str, Any], new: TrainRun) -> list[str]:
    """Say what a run would learn differently from the one that was saved.

    Args:
        old: The saved run as `to_dict` gave it.
        new: The run that wants to go on.

    Returns:
        "train.steps is 200, was 100" each; empty when the run may be resumed exactly.
    """
    before, now = _flat(old), _flat(to_dict(new))
    return [
        f"{key} is {now.get(key)!r}, was {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if prefix in _FREE:
        return {}
    if isinstance(tree, dict):
        items = [(f"{prefix}.{key}" if prefix else key, value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        items = [(f"{prefix}.{place}", value) for place, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {key: value for name, item in items for key, value in _flat(item, name).items()}
