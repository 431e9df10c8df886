"""`liquid bench data`: encoding and loading of data, in parts.

Contract: the parts are measured one after the other; one that can't run here says so in `missing`.
With the default settings the whole takes less than 10 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from liquidmm.bench.encoding import EncodingSizes, measure_encoding
from liquidmm.bench.formats import measure_formats
from liquidmm.bench.loading import LoadingSizes, measure_loading
from liquidmm.bench.report import Result, machine
from liquidmm.errors import ConfigError, suggest
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.runtime import resolve_device

PARTS = ("encoding", "loading", "formats")
"""What can be measured, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataBench:
    """What to measure."""

    parts: tuple[str, ...] = PARTS
    """Which of `PARTS` are measured."""
    checkpoint: Path = DEFAULT_MODEL
    """Checkpoint whose image tokenizer encodes, and whose tokenizer lays the rows out."""
    scratch: Path | None = None
    """Where shards are made for the time being, about 3 GB; None: the system's temporary folder."""
    device: str | None = "cpu"
    """Where pictures are encoded; None takes the best there is."""
    encoding: EncodingSizes = field(default_factory=EncodingSizes)
    """What is encoded."""
    loading: LoadingSizes = field(default_factory=LoadingSizes)
    """Sizes of loading."""

    def __post_init__(self) -> None:
        """Check the names."""
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--only: '{part}' is unknown.{suggest(part, PARTS)}")


def bench_data(config: DataBench, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Measure.

    Args:
        config: What.
        progress: Told what is being done.

    Returns:
        The figures, and the reasons of those that are lacking.

    Raises:
        CheckpointError: The checkpoint can't be loaded.
        LiquidError: The disk has no room.
    """
    result = Result(bench="data", settings=machine(resolve_device(config.device)))
    if "encoding" in config.parts:
        measure_encoding(result, config.encoding, config.checkpoint, config.device, progress)
    if "loading" in config.parts:
        measure_loading(result, config.loading, config.checkpoint, config.scratch, progress)
    if "formats" in config.parts:
        progress("the same rows in other formats")
        sizes = config.loading
        measure_formats(result, sizes.pictures, sizes.seconds / 10, config.scratch)
    return result
