"""The run file of `liquid train`: what to train, on which data, and for how long.

Every key has a single default, here or in the class it belongs to (`Source`, `ExampleConfig`,
`OptimConfig`). Nothing is opened or loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from liquidmm.config import to_dict
from liquidmm.data.examples import ExampleConfig
from liquidmm.data.mixture import Source, check_sources
from liquidmm.data.packing import PackingConfig
from liquidmm.errors import ConfigError
from liquidmm.ranges import RangeChecked, check_ranges
from liquidmm.train.distributed import ParallelConfig
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training and evaluation data."""

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
    """Training data."""
    eval: tuple[Source, ...] = ()
    """Evaluation data; each source is evaluated separately, and its weight has no effect."""
    seq_len: Annotated[int, Ge(8)] = 2048
    """Tokens per packed sequence; documents in a sequence do not attend to each other."""
    max_document_tokens: Annotated[int, Ge(0)] = 0
    """Maximum tokens per document; 0 means ``seq_len``. Packed sequences can be longer than the
    model's context, which reduces padding; documents cannot."""
    overlong: Literal["error", "drop"] = "error"
    """What to do with a record that contains an image and exceeds that: stop with an error that
    names the record, or drop and count it. Text without images is split."""
    packing_buffer: Annotated[int, Ge(1)] = 512
    """Number of examples that are packed together. More examples reduce padding but delay the
    start."""
    num_workers: Annotated[int, Ge(0)] = 0
    """Number of processes per rank that prepare sequences in advance; 0 prepares them between
    steps. The sequences are the same for any number."""
    format: ExampleConfig = field(default_factory=ExampleConfig)
    """Random choices in the layout of examples; evaluation has no caption dropout."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_sources(self.sources)

    @property
    def packing(self) -> PackingConfig:
        """Settings for packing documents into sequences."""
        return PackingConfig(
            seq_len=self.seq_len,
            max_document_tokens=self.max_document_tokens,
            packing_buffer=self.packing_buffer,
            overlong=self.overlong,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Length of the run, batch sizes and intervals."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "batch_rows": "global_batch_size",
        "micro_batch_rows": "micro_batch_size",
        "validate_every": "eval_every",
        "validate_rows": "eval_samples",
        "keep": "keep_checkpoints",
        "spike": "loss_spike_sigma",
    }

    steps: Annotated[int, Ge(1)]
    """Optimizer steps."""
    global_batch_size: Annotated[int, Ge(1)] = 16
    """Packed sequences per optimizer step, summed over all ranks."""
    micro_batch_size: Annotated[int, Ge(0)] = 0
    """Sequences that a rank computes at a time; 0 computes all its sequences of a step at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products; weights and optimizer state stay in float32."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: Annotated[int, Ge(0)] = 0
    """Steps between two evaluations; 0 evaluates only at the end."""
    eval_samples: Annotated[int, Ge(1)] = 32
    """Packed sequences per evaluation source, summed over all ranks."""
    sample_every: Annotated[int, Ge(0)] = 0
    """Steps between two sample grids; 0 generates one only at the end."""
    save_every: Annotated[int, Ge(0)] = 500
    """Steps between two checkpoints; 0 saves one only when the run stops."""
    keep_checkpoints: Annotated[int, Ge(1)] = 2
    """Number of most recent checkpoints to keep."""
    loss_spike_sigma: Annotated[float, Ge(0)] = 6.0
    """Report losses this many standard deviations above the running mean; 0 disables it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                f"micro_batch_size: expected a divisor of global_batch_size "
                f"({self.global_batch_size}), got {self.micro_batch_size}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig(RangeChecked):
    """Samples generated during training."""

    prompts: tuple[str, ...] = ()
    """Captions of the image grid; if empty, there is no grid. A text file next to the grid contains
    the model's description of each image."""
    questions: tuple[str, ...] = ()
    """Questions without an image; the answers are written to the same text file."""
    guidance: Annotated[float | None, Ge(0)] = None
    """Guidance scale for the grid; None uses the checkpoint's own."""
    seed: int = 0
    """Seed of the first image; each further image adds 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    RENAMED: ClassVar[Mapping[str, str]] = {"final_dtype": "save_dtype"}

    checkpoint: Path
    """Liquid checkpoint to start from, such as one written by `liquid expand`."""
    out: Path
    """Folder of this run: metrics, samples, checkpoints and `final`."""
    data: DataConfig
    """Training and evaluation data."""
    train: LoopConfig
    """Length of the run, batch sizes and intervals."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which parameters to train, and how to compute the model."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several ranks share the model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule and stabilizers."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Samples generated during training."""
    trackers: tuple[Literal["trackio", "wandb"], ...] = ()
    """Where to log metrics besides metrics.jsonl and TensorBoard."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed for the data order and caption dropout."""
    device: str | None = None
    """Device; None uses the fastest."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the weights in `final`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.optim.warmup_steps >= self.train.steps:
            raise ConfigError(
                f"optim.warmup_steps: expected less than train.steps ({self.train.steps}), got "
                f"{self.optim.warmup_steps}."
            )
        if self.out.resolve() == self.checkpoint.resolve():
            raise ConfigError(f"out: is the checkpoint folder ({self.out}). Choose another folder.")

    def batch_size_per_rank(self, ranks: int) -> int:
        """Return the number of sequences that each rank computes in one step.

        Raises:
            ConfigError: The sequences cannot be divided evenly among the ranks.
        """
        for name in ("global_batch_size", "eval_samples"):
            size = getattr(self.train, name)
            if size % ranks:
                raise ConfigError(
                    f"train.{name}: expected a multiple of the number of ranks ({ranks}), got "
                    f"{size}."
                )
        size = self.train.global_batch_size // ranks
        micro = self.train.micro_batch_size
        if micro and size % micro:
            raise ConfigError(
                f"train.micro_batch_size: expected a divisor of the {size} sequences of a rank "
                f"({self.train.global_batch_size} on {ranks} ranks), got {micro}."
            )
        return size


# Keys that a resumed run can change because they do not affect what the model learns. (Some change
# the order of additions and therefore the last digits.)
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
    """Describe the settings that change what a resumed run learns: "train.steps is 200, was 100".

    ``old`` are the saved settings, from `to_dict`. Empty if the run can be resumed exactly.
    """
    before, now = _flatten(old), _flatten(to_dict(new))
    return [
        f"{key} is {now.get(key)!r}, was {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if prefix in _FREE:
        return {}
    if isinstance(tree, dict):
        items = [(f"{prefix}.{key}" if prefix else key, value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        items = [(f"{prefix}.{number}", value) for number, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {key: value for name, item in items for key, value in _flatten(item, name).items()}
