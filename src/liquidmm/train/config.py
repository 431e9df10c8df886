"""The run file of `liquid train`: what to train, on what, for how long, and what to show.

Contract: every key has its one default here or beside its owner (`Source`, `ExampleConfig`,
`OptimConfig`); checks of one table stand in that table, checks across tables in `TrainConfig`. Nothing
is opened or loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from liquidmm.config import to_dict
from liquidmm.data.draws import Source, check_sources
from liquidmm.data.examples import ExampleConfig
from liquidmm.data.packing import PackingConfig
from liquidmm.errors import ConfigError
from liquidmm.train.distributed import ParallelConfig
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where sequences come from."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "length": "seq_len",
        "context": "max_document_tokens",
        "window": "packing_buffer",
        "workers": "num_workers",
        "too_long": "overlong",
        "render": "format",
        "validation": "eval",
    }

    sources: tuple[Source, ...]
    """What is trained on."""
    eval: tuple[Source, ...] = ()
    """What is measured along the way, each source by itself; the weight has no meaning here."""
    seq_len: int = 2048
    """Ids in a row; sequences are packed into rows and never see each other."""
    max_document_tokens: int = 0
    """Ids of the longest sequence; 0: as long as a row. Rows may be longer than what the model has
    positions for, which fills them better; sequences may not."""
    overlong: Literal["error", "drop"] = "error"
    """What is done with a record that has a picture and is longer: stop the run with its name, or
    leave it out and count it. Text without pictures is cut."""
    packing_buffer: int = 512
    """Examples that are packed together. More fill rows better, and take longer at the start."""
    num_workers: int = 0
    """Processes of each rank that make rows ahead; 0 makes them between steps. The rows are the
    same, whatever the number."""
    format: ExampleConfig = field(default_factory=ExampleConfig)
    """The random choices of rendering; validation has no guidance dropout."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_sources(self.sources)
        if self.seq_len < 8:
            raise ConfigError(f"seq_len: must be at least 8 ({self.seq_len}).")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers: must be 0 or more ({self.num_workers}).")
        self.packing  # noqa: B018 - checks the rest

    @property
    def packing(self) -> PackingConfig:
        """How rows are filled."""
        return PackingConfig(
            length=self.seq_len,
            context=self.max_document_tokens,
            window=self.packing_buffer,
            too_long="leave_out" if self.overlong == "drop" else "error",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how large and how often."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "batch_rows": "global_batch_size",
        "micro_batch_rows": "micro_batch_size",
        "validate_every": "eval_every",
        "validate_rows": "eval_samples",
        "keep": "keep_checkpoints",
        "spike": "loss_spike_sigma",
    }

    steps: int
    """Optimizer steps of the run."""
    global_batch_size: int = 16
    """Rows of one optimizer step, on all ranks together."""
    micro_batch_size: int = 0
    """Rows a rank computes at a time; 0 computes its rows of a step at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights and optimizer stay in float32."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 0
    """Steps between two validations; 0 validates only at the end."""
    eval_samples: int = 32
    """Rows of each validation source, on all ranks together."""
    sample_every: int = 0
    """Steps between two sample grids; 0 draws only at the end."""
    save_every: int = 500
    """Steps between two saves; 0 saves only when the run is stopped."""
    keep_checkpoints: int = 2
    """How many of the last saves are kept."""
    loss_spike_sigma: float = 6.0
    """Report a loss that lies so many standard deviations above the mean of the steps before; 0
    reports none."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "global_batch_size", "log_every", "eval_samples", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1 ({getattr(self, name)}).")
        for name in (
            "micro_batch_size",
            "eval_every",
            "sample_every",
            "save_every",
            "loss_spike_sigma",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more ({getattr(self, name)}).")
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                f"micro_batch_size: must divide global_batch_size ({self.micro_batch_size} of "
                f"{self.global_batch_size})."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """What is drawn along the way."""

    prompts: tuple[str, ...] = ()
    """Captions of the grid; none draws nothing. What the model says about each drawing stands
    beside it, in a text file."""
    questions: tuple[str, ...] = ()
    """What the model is asked without a picture; question and answer go to the same file."""
    guidance: float | None = None
    """Guidance scale of the grid; None uses the checkpoint's own."""
    seed: int = 0
    """Seed of the first picture; the next ones count up from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training of the language model."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "final_dtype": "save_dtype",
    }

    checkpoint: Path
    """Liquid checkpoint to start from, as `liquid expand` writes it."""
    out: Path
    """Folder of this run: metrics, samples, saves and `final`."""
    data: DataConfig
    """Where sequences come from."""
    train: LoopConfig
    """How long, how large and how often."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """What of the model is trained, and how it is computed."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several ranks share the model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule and stabilizers."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """What is drawn along the way."""
    trackers: tuple[Literal["trackio", "wandb"], ...] = ()
    """Where figures go besides metrics.jsonl and TensorBoard."""
    seed: int = 0
    """Seed of the order of the data and of guidance dropout."""
    device: str | None = None
    """Device to train on; None takes the fastest."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights in `final`."""

    def __post_init__(self) -> None:
        """Check what concerns two tables."""
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more ({self.seed}).")
        if self.optim.warmup_steps >= self.train.steps:
            raise ConfigError(
                f"optim.warmup_steps: must be below train.steps ({self.optim.warmup_steps} of "
                f"{self.train.steps})."
            )
        if self.out.resolve() == self.checkpoint.resolve():
            raise ConfigError(f"out: is the checkpoint itself ({self.out}). Choose another folder.")

    def rows_of_rank(self, ranks: int) -> int:
        """Give the rows of one step that each of so many ranks computes.

        Raises:
            ConfigError: The rows can't be shared evenly.
        """
        for name in ("global_batch_size", "eval_samples"):
            rows = getattr(self.train, name)
            if rows % ranks:
                raise ConfigError(
                    f"train.{name}: {rows} rows can't be shared evenly by {ranks} ranks. Choose a "
                    "multiple."
                )
        rows = self.train.global_batch_size // ranks
        micro = self.train.micro_batch_size
        if micro and rows % micro:
            raise ConfigError(
                f"train.micro_batch_size: must divide the rows of a rank ({micro} of {rows}: "
                f"{self.train.global_batch_size} rows on {ranks} ranks)."
            )
        return rows


# Keys that say what is shown and kept and how it is computed, never what is learnt: a resumed run
# may change them. (Those that change the order of additions change the last digits.)
_FREE = {
    "out",
    "device",
    "save_dtype",
    "sample",
    "trackers",
    "parallel",
    "model.attn_implementation",
    "model.activation_checkpointing",
    "model.compile",
    "data.eval",
    "data.num_workers",
    "train.micro_batch_size",
    "train.log_every",
    "train.eval_every",
    "train.eval_samples",
    "train.sample_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.loss_spike_sigma",
}


def differences(old: dict[str, Any], new: TrainConfig) -> list[str]:
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
