"""The run file of `liquid encode`: how pictures are prepared, and where they are encoded.

Contract: configuration only; ranges and contradictions are errors here, before anything is opened.
Whether sizes fit an image tokenizer is checked by `prepare`, which knows its factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from liquidmm.config import to_dict
from liquidmm.data.readers import SourceConfig
from liquidmm.errors import ConfigError

_ROWS = ("size", "prepare", "max_aspect", "shard_records")
_RECORDS = ("format", "layout", "image_root", "fields", "splits", "name", "license", "split")


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketConfig:
    """Sizes to choose from: every area in every aspect ratio, in multiples of the factor.

    A picture goes to the nearest aspect ratio and there to the nearest area that it need not be
    enlarged for; it is scaled to cover that size and cut in the middle.
    """

    areas: tuple[int, ...] = (512 * 512,)
    """Pixels of a prepared picture, about: sides are rounded to multiples of the factor."""
    ratios: tuple[str, ...] = ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")
    """Width to height, such as "3:2"."""
    max_upscale: float = 1.0
    """Largest factor that a picture is enlarged by; one that needs more is refused. 0: any."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("areas", "ratios"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name}: is empty. Give at least one.")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {values} names one twice. Remove it.")
        for area in self.areas:
            if area < 1:
                raise ConfigError(f"areas: is {area}. Give pixels, such as 262144.")
        self.aspects()
        if not (math.isfinite(self.max_upscale) and self.max_upscale >= 0):
            raise ConfigError(
                f"max_upscale: is {self.max_upscale}. Give a factor, or 0 for no limit."
            )

    def aspects(self) -> dict[str, float]:
        """Return the aspect ratios as width divided by height.

        Raises:
            ConfigError: One is not written as two numbers with a colon, or is extreme.
        """
        found: dict[str, float] = {}
        for ratio in self.ratios:
            width, _, height = ratio.partition(":")
            try:
                found[ratio] = float(width) / float(height)
            except (ValueError, ZeroDivisionError):
                raise ConfigError(f"ratios: '{ratio}'. Write width:height, such as 3:2.") from None
            if not 0.01 <= found[ratio] <= 100:
                raise ConfigError(f"ratios: '{ratio}'. Give one from 1:100 to 100:1.")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How pictures are prepared and rows are stored."""

    size: int = 512
    """Width and height of the prepared picture, in pixels; a multiple of the tokenizer's factor."""
    buckets: BucketConfig | None = None
    """Several sizes instead of `size`."""
    prepare: Literal["crop", "pad"] = "crop"
    """`crop` scales to cover the size and cuts the middle, `pad` shows all of it on a grey
    square."""
    max_aspect: float = 2.0
    """With `crop`, a picture this many times longer than wide (or wider) is refused; with buckets,
    one that is this many times longer or wider than the nearest. 0: none is."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Type that the encoder computes in. `auto` is float32 on a CPU and on a cluster; on a GPU of
    this machine the fastest whose codes agree with float32."""
    agreement: float = 0.99
    """Share of codes that a faster type must have in common with float32: `auto` passes over one
    that has less, one that was asked for ends the run. 0 to 1."""
    batch_size: int = 32
    """Pictures encoded at once, at most; on a CPU no more than fit its caches."""
    shard_records: int = 1024
    """Entries of the source per shard, about."""
    max_failures: float = 0.05
    """Share of refused entries above which the run stops, 0 to 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("size", "batch_size", "shard_records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give 1 or more.")
        for name in ("max_failures", "agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give a share from 0 to 1.")
        if self.max_aspect and not self.max_aspect > 1:
            raise ConfigError(f"max_aspect: is {self.max_aspect}. Give more than 1, or 0 for none.")
        if self.buckets is not None and self.prepare == "pad":
            raise ConfigError("buckets: need prepare = 'crop', 'pad' makes squares. Leave one out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmConfig:
    """What Slurm wants to know of a job."""

    partition: str = ""
    """Partition; empty takes the cluster's default."""
    qos: str = ""
    """Quality of service; empty takes the cluster's default."""
    time: str = "24:00:00"
    """Time limit of a task. One that runs out of time is finished by the next `liquid encode`."""
    setup: str = ""
    """Shell line that makes Python ready on a node, such as `source /shared/venv/bin/activate`."""
    max_array: int = 1000
    """Most tasks of one array job, as the cluster allows."""
    options: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, without their dashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Where and by how many processes the parts of a source are encoded."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """This machine, an array job of Slurm, or a Ray cluster."""
    workers: int = 0
    """Processes that encode at the same time. 0, on this machine: one per GPU, or per core."""
    tasks: int = 0
    """Jobs that the missing shards are divided among; a task keeps its tokenizer from shard to
    shard. 0: one per shard on this machine, else four per worker."""
    threads: int = 1
    """Cores that a worker without a GPU computes on. Another number may round otherwise, and then a
    code changes here and there."""
    decoders: int = 0
    """Threads of a worker that open and prepare pictures. 0: one; with GPUs eight, or the cores of
    this machine divided among them."""
    gpus: int = 0
    """GPUs that a worker is given on a cluster: 0 or 1."""
    memory: int = 4
    """Memory that a worker is given on a cluster, in GiB for each of its cores (as many as
    `threads` or `decoders`)."""
    address: str = "auto"
    """Ray: address of the cluster; `auto` is the one this machine belongs to, `local` a new one on
    this machine."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What Slurm wants to know."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("workers", "tasks", "decoders"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give 0 or more.")
        for name in ("threads", "memory"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give 1 or more.")
        if self.gpus not in (0, 1):
            raise ConfigError(f"gpus: is {self.gpus}. A worker uses one GPU or none.")
        if self.kind != "local" and not self.workers:
            raise ConfigError(f"workers: say how many when the kind is {self.kind}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRun:
    """The run file of `liquid encode`."""

    source: SourceConfig
    """What is encoded."""
    tokenizer: Path
    """Folder or file of the image tokenizer."""
    out: Path
    """Folder for the shards."""
    device: str | None = None
    """Where pictures are encoded; None takes the best there is."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How pictures are prepared and rows are stored."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Where and by how many processes."""


def settings(source: SourceConfig, config: EncodeConfig, precision: str) -> dict[str, Any]:
    """Return what decides the rows of a folder, for its manifest.

    Args:
        source: What is encoded.
        config: How.
        precision: Type that the encoder computes in, never `auto`.

    Returns:
        JSON-able values under one level of names; of the source those that aren't the default.
    """
    given = to_dict(config)
    found: dict[str, Any] = {name: given[name] for name in _ROWS}
    if config.buckets is not None:
        del found["size"]
        found |= {f"buckets.{name}": value for name, value in given["buckets"].items()}
    if precision != "float32":
        found["precision"] = precision
    usual, chosen = to_dict(SourceConfig(path="-")), to_dict(source)
    found |= {name: chosen[name] for name in _RECORDS if chosen[name] != usual[name]}
    return found
