"""Configuration of `liquid encode`.

Ranges and conflicting settings are checked here, before any file is opened. `ImageTransform` checks
that the sizes fit the image tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from liquidmm.config import to_dict
from liquidmm.data.readers import SourceConfig
from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.tokenizer import Precision
from liquidmm.ranges import RangeChecked, check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketConfig:
    """Several image sizes: each area in each aspect ratio.

    An image gets the nearest aspect ratio, then the nearest area that does not enlarge it too much.
    It is scaled to cover that size and center-cropped.
    """

    areas: tuple[Annotated[int, Ge(1)], ...] = (512 * 512,)
    """Areas in pixels; sides are rounded to multiples of the tokenizer's downsampling factor."""
    ratios: tuple[str, ...] = ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")
    """Aspect ratios, width:height."""
    max_upscale: Annotated[float, Ge(0)] = 1.0
    """Maximum upscaling of an image; images that need more are rejected. 0 means no limit."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("areas", "ratios"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name}: expected at least one value, got an empty list.")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: duplicate value in {values}. Remove it.")
        self.aspects()

    def aspects(self) -> dict[str, float]:
        """Return width divided by height for each of `ratios`.

        Raises:
            ConfigError: A ratio is not two numbers with a colon, or is extreme.
        """
        aspects: dict[str, float] = {}
        for ratio in self.ratios:
            width, _, height = ratio.partition(":")
            try:
                aspects[ratio] = float(width) / float(height)
            except (ValueError, ZeroDivisionError):
                raise ConfigError(
                    f"ratios: expected width:height such as 3:2, got '{ratio}'."
                ) from None
            if not 0.01 <= aspects[ratio] <= 100:
                raise ConfigError(f"ratios: expected 1:100 to 100:1, got '{ratio}'.")
        return aspects


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """How to resize and encode images, and how to divide samples among shards."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "size": "resolution",
        "prepare": "resize",
        "max_failures": "max_error_rate",
        "agreement": "min_code_match",
        "shard_records": "samples_per_shard",
    }

    resolution: Annotated[int, Ge(1)] = 512
    """Width and height of the resized image in pixels; a multiple of the tokenizer's downsampling
    factor."""
    buckets: BucketConfig | None = None
    """Several sizes instead of `resolution`."""
    resize: Literal["crop", "pad"] = "crop"
    """`crop` scales the image to cover the size and crops the center; `pad` fits the whole image
    into a gray square."""
    max_aspect: float = 2.0
    """With `crop`, images with an aspect ratio of this or more (relative to the nearest bucket, if
    there are buckets) are rejected. 0 means no limit."""
    precision: Precision = "float32"
    """Dtype of the encoder network: `float32`, `tf32` or `bfloat16`."""
    min_code_match: Annotated[float, Ge(0), Le(1)] = 0.99
    """Minimum fraction of codes that must equal those of float32; checked on the first images if
    `precision` is another dtype."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Maximum number of images encoded at once. A CPU uses smaller batches that fit in its
    caches."""
    samples_per_shard: Annotated[int, Ge(1)] = 1024
    """Approximate number of source records per shard."""
    max_error_rate: Annotated[float, Ge(0), Le(1)] = 0.05
    """Maximum fraction of rejected records; the run stops if there are more."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_aspect and not self.max_aspect > 1:
            raise ConfigError(
                f"max_aspect: expected a number above 1, or 0 for no limit, got {self.max_aspect}."
            )
        if self.buckets is not None and self.resize == "pad":
            raise ConfigError("buckets: require resize = 'crop'; 'pad' makes squares. Remove one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig(RangeChecked):
    """Processes and threads."""

    RENAMED: ClassVar[Mapping[str, str]] = {"workers": "num", "decoders": "decode_threads"}

    num: Annotated[int, Ge(0)] = 0
    """Number of processes; 0 means one per GPU or CPU core. `--task` always uses one."""
    threads: Annotated[int, Ge(1)] = 1
    """CPU cores per worker without a GPU. They affect rounding, so another value can change a few
    codes."""
    decode_threads: Annotated[int, Ge(0)] = 0
    """Threads per worker that open and resize images. 0 means one on a CPU; with GPUs, it divides
    the CPU cores among the workers, with at most 16 each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmConfig(RangeChecked):
    """Submit the run as a Slurm array job. All nodes must have access to the output folder."""

    num_tasks: Annotated[int, Ge(1)]
    """Number of array tasks, which share the shards equally; at most `workers.num` run at the same
    time, if that is set."""
    setup: str = ""
    """Shell commands that run first in each task, such as `source /shared/venv/bin/activate`."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of sbatch without dashes, such as `partition`, `time` or `gpus-per-task`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig(RangeChecked):
    """Run the workers on a Ray cluster."""

    address: str = "auto"
    """Address of the cluster; `auto` is this machine's cluster, `local` starts one on this
    machine."""
    gpus: Annotated[int, Ge(0), Le(1)] = 0
    """GPUs per worker."""
    memory: Annotated[float, Gt(0)] = 4.0
    """Memory in GiB per CPU core of a worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """The run file of `liquid encode`."""

    RENAMED: ClassVar[Mapping[str, str]] = {"engine": "workers"}

    source: SourceConfig
    """The records to encode."""
    tokenizer: Path
    """Folder or file of the image tokenizer."""
    out: Path
    """Output folder for the shards."""
    device: str | None = None
    """Device of the image tokenizer; None uses the fastest available."""
    encode: EncoderConfig = field(default_factory=EncoderConfig)
    """Images and shards."""
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    """Processes and threads."""
    slurm: SlurmConfig | None = None
    """Submit a Slurm array job."""
    ray: RayConfig | None = None
    """Run on a Ray cluster."""

    def __post_init__(self) -> None:
        if self.slurm is not None and self.ray is not None:
            raise ConfigError("slurm: cannot be combined with [ray]. Remove one of the tables.")
        if self.ray is not None and not self.workers.num:
            raise ConfigError("workers.num: expected the number of Ray workers, got 0.")


def settings(source: SourceConfig, config: EncoderConfig) -> dict[str, Any]:
    """Return everything that determines the samples of a folder, for its manifest.

    JSON-compatible values without nested tables; for the source, only non-default values.
    """
    values = to_dict(config)
    found = {
        name: values[name] for name in ("resolution", "resize", "max_aspect", "samples_per_shard")
    }
    if config.buckets is not None:
        del found["resolution"]
        found |= {f"buckets.{name}": value for name, value in values["buckets"].items()}
    if config.precision != "float32":
        found["precision"] = config.precision
    defaults, chosen = to_dict(SourceConfig(path="-")), to_dict(source)
    names = ("format", "layout", "image_root", "fields", "splits", "name", "license", "split")
    return found | {name: chosen[name] for name in names if chosen[name] != defaults[name]}
