"""How fast packed rows come from shards, and how much memory it takes.

Contract: what is read lies in the page cache, as it does in a second pass. Speeds are those of a
stream that runs: its start is left out, and whole windows are waited for. Memory is that of one
process that draws, renders and packs by itself; each figure comes from a fresh one.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liquidmm.bench.synthetic import pictures, texts, write_synthetic
from liquidmm.data.examples import ExampleBuilder
from liquidmm.data.manifest import read_manifest
from liquidmm.data.mixture import Source
from liquidmm.data.packing import PackedSequence, PackingConfig
from liquidmm.data.shards import read_shards
from liquidmm.data.stream import TokenStream
from liquidmm.errors import ConfigError
from liquidmm.model.processor import LiquidProcessor

if TYPE_CHECKING:
    from liquidmm.bench.report import Result

_MIB = 2**20
_LANES = 4
_BYTES = 16
"""Bytes of a position of a row: ids, labels, places and tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingSizes:
    """How much is loaded."""

    seconds: float = 25.0
    """Time of each speed, about."""
    workers: int = 2
    """Processes that make rows."""
    pictures: int = 20_000
    """Pictures of 1,024 codes, and of 64."""
    texts: int = 5_000
    """Documents of 1,300 words on average, about 2,000 ids."""
    samples: tuple[int, ...] = (1_000_000, 10_000_000)
    """Numbers of records whose memory is compared; multiples of `shard_records`."""
    shard_records: int = 100_000
    """Records of one of their shards."""
    window: int = 512
    """Examples that are packed together."""
    draws: int = 60_000
    """Records that are drawn before memory is looked at."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.seconds > 0:
            raise ConfigError(f"seconds: must be above 0 ({self.seconds}).")
        if self.workers < 0:
            raise ConfigError(f"workers: must be 0 or more ({self.workers}).")
        for count in self.samples:
            if count < self.shard_records or count % self.shard_records:
                raise ConfigError(
                    f"samples: must be multiples of shard_records, {self.shard_records} ({count})."
                )


def measure_loading(
    result: Result,
    sizes: LoadingSizes,
    checkpoint: Path,
    scratch: Path | None,
    progress: Callable[[str], None],
) -> None:
    """Measure speed and memory on made-up shards.

    Args:
        result: Where figures go.
        sizes: How much is loaded.
        checkpoint: Whose tokenizer lays the rows out.
        scratch: Where the shards are made for the time being; None: the system's temporary folder.
        progress: Told what is being done.

    Raises:
        LiquidError: The disk has no room.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="liquid-bench-") as name:
        folder = Path(name)
        progress("making shards of pictures and texts")
        large = write_synthetic(folder / "large", pictures(sizes.pictures, 32, 40))
        small = write_synthetic(folder / "small", pictures(sizes.pictures, 8, 8))
        told = write_synthetic(folder / "texts", texts(sizes.texts, 1300))
        _measure_reading(result, large, sizes)
        progress("loading the paper's mixture")
        paper = (
            Source(path=told, task="text"),
            Source(path=large, task="text_to_image", swap_ratio=0.2),
        )
        _measure_speed(result, "load", paper, 2048, sizes, checkpoint)
        progress("loading small pictures")
        icons = (Source(path=small, task="text_to_image", swap_ratio=0.2),)
        _measure_speed(result, "load_small", icons, 512, sizes, checkpoint)
        for count in sizes.samples:
            progress(f"memory with {count:,} records")
            rows = pictures(sizes.shard_records, 8, 4)
            many = write_synthetic(folder / f"{count}", rows, count // sizes.shard_records)
            _measure_memory(result, many, count, sizes, checkpoint)
    result.settings["loading"] = {
        "workers": sizes.workers,
        "lanes": _LANES,
        "window": sizes.window,
    }


def _measure_reading(result: Result, folder: Path, sizes: LoadingSizes) -> None:
    """Read rows at random, as they are, in one process."""
    rows = read_shards(folder).of_kind("image_text")
    order = np.random.default_rng(0).integers(0, len(rows), len(rows)).tolist()
    for index in order:  # brings the file into the page cache
        rows[index]
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < sizes.seconds / 10:
        for index in order[:1000]:
            rows[index]
        count += len(order[:1000])
    result.number("read_rows_per_s", count / taken, "rows/s")
    each = folder.joinpath("shard-00000.arrow").stat().st_size / len(rows)
    result.number("read_megabytes_per_s", count / taken * each / 1e6, "MB/s")
    result.number("bytes_per_picture", each, "B", "1,024 codes and a caption of 40 words")


def _measure_speed(
    result: Result,
    name: str,
    sources: Sequence[Source],
    length: int,
    sizes: LoadingSizes,
    checkpoint: Path,
) -> None:
    """Take rows as fast as they come, from the beginning of a window to that of another one."""
    # not for the process whose memory is looked at
    from liquidmm.bench.padded import padded_share

    packing = PackingConfig(seq_len=length, packing_buffer=sizes.window)
    stream = _open(checkpoint, sources, packing, sizes.workers)
    try:
        rows, rounds = _take_until(stream, 1), 1
        began, count, filled = time.perf_counter(), 0, 0
        while (taken := time.perf_counter() - began) < sizes.seconds:
            rounds += 1
            rows = _take_until(stream, rounds)
            count += len(rows)
            filled += sum(row.num_tokens for row in rows)
    finally:
        stream.close()
    result.number(f"{name}_tokens_per_s", filled / taken, "ids/s")
    result.number(f"{name}_rows_per_s", count / taken, "rows/s")
    result.number(f"{name}_megabytes_per_s", count * length * _BYTES / taken / 1e6, "MB/s")
    result.number(f"{name}_fill", 100 * filled / (count * length), "%")
    note = "the same documents, 16 in a batch"
    result.number(f"{name}_padded_fill", 100 * padded_share(rows, 16), "%", note)


def _take_until(stream: TokenStream, rounds: int) -> list[PackedSequence]:
    """Take rows until the lanes have gone through so many windows each."""
    taken: list[PackedSequence] = []
    while sum(each["buffer"] for each in stream.state_dict()["streams"].values()) < rounds * _LANES:
        taken += stream.next(range(_LANES))
    return taken


def _measure_memory(
    result: Result, folder: Path, count: int, sizes: LoadingSizes, checkpoint: Path
) -> None:
    """Look at the memory of a fresh process that has drawn some records."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        anonymous, mapped = pool.submit(_memory, checkpoint, folder, sizes).result()
    note = f"of the process, after {sizes.draws:,} draws"
    result.number(f"load_memory_{count}", anonymous / _MIB, "MiB", f"anonymous, {note}")
    result.number(
        f"load_mapped_{count}", mapped / _MIB, "MiB", "files: shards in the page cache, libraries"
    )


def _memory(checkpoint: Path, folder: Path, sizes: LoadingSizes) -> tuple[int, int]:
    """Load some rows and give the anonymous and the file-backed bytes that this process holds."""
    source = Source(path=folder, task="text_to_image")
    stream = _open(
        checkpoint, (source,), PackingConfig(seq_len=256, packing_buffer=sizes.window), 0
    )
    records = read_manifest(folder).totals.records
    while stream.epochs[0] * records < sizes.draws:
        stream.next(range(_LANES))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    anonymous, mapped = (
        int(found[1]) * 1024 if (found := re.search(rf"{name}:\s+(\d+)", status)) else 0
        for name in ("RssAnon", "RssFile")
    )
    return anonymous, mapped


def _open(
    checkpoint: Path, sources: Sequence[Source], packing: PackingConfig, workers: int
) -> TokenStream:
    renderer = ExampleBuilder(LiquidProcessor.from_pretrained(checkpoint).sequences)
    return TokenStream(sources, renderer, packing, 0, num_streams=_LANES, num_workers=workers)
