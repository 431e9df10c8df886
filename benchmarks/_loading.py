"""The speed and memory of loading: shards of synthetic records to packed sequences.

The files are in the page cache, as in a second epoch. The start of a stream is not timed. Memory is
that of a fresh process that samples, builds and packs by itself.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _harness import kernel_bytes
from _results import Result, progress
from liquidmm.data.examples import ExampleBuilder
from liquidmm.data.manifest import Provenance, read_manifest
from liquidmm.data.mixture import Source
from liquidmm.data.packing import PackedSequence, PackingConfig
from liquidmm.data.samples import Sample
from liquidmm.data.shard_writer import begin, finish, shard_name, write_shard
from liquidmm.data.shards import read_shards
from liquidmm.data.stream import TokenStream
from liquidmm.errors import LiquidError
from liquidmm.model.processor import LiquidProcessor

CODEBOOK = 2048
"""Codes of the included model's image tokenizer."""
_TEXT = """
the a of and in to is it that on with for as was at by from this be are an or has its not one light
water house tree river mountain city street table window garden horse bird cloud stone small large
old young red green blue yellow white black bright dark quiet round narrow wooden standing running
sitting falling shining growing holding showing under over behind between morning evening summer
winter people children hands face color paper glass metal painting
"""
WORDS = tuple(_TEXT.split())
_MIB = 2**20
_STREAMS = 4
_TOKEN_BYTES = 16
"""Bytes of a token in a packed sequence: id, label, position and task."""
_DISK_MARGIN = 2**30
"""Bytes to leave free on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingSizes:
    """How much is loaded."""

    seconds: float = 25.0
    """Time of each speed measurement."""
    workers: int = 2
    """Processes that build sequences."""
    images: int = 20_000
    """Images of 1,024 codes, and of 64."""
    texts: int = 5_000
    """Documents of 1,300 words on average, about 2,000 tokens."""
    samples: tuple[int, ...] = (1_000_000, 10_000_000)
    """Numbers of records whose memory is compared; multiples of `shard_records`."""
    shard_records: int = 100_000
    """Records of one of their shards."""
    packing_buffer: int = 512
    sampled_records: int = 60_000
    """Records to sample before the memory is measured."""


def measure_loading(
    result: Result, sizes: LoadingSizes, checkpoint: Path, scratch: Path | None
) -> None:
    """Measure speed and memory with the tokenizer of a checkpoint.

    Raises:
        LiquidError: A number of samples is not a multiple of `shard_records`, or the disk is full.
    """
    for count in sizes.samples:
        if count < sizes.shard_records or count % sizes.shard_records:
            raise LiquidError(
                f"--samples: expected multiples of {sizes.shard_records}, got {count}."
            )
    with tempfile.TemporaryDirectory(dir=scratch, prefix="liquid-bench-") as name:
        folder = Path(name)
        progress("writing synthetic shards")
        large = write_synthetic(folder / "large", image_records(sizes.images, 32, 40))
        small = write_synthetic(folder / "small", image_records(sizes.images, 8, 8))
        texts = write_synthetic(folder / "texts", text_records(sizes.texts, 1300))
        _measure_reading(result, large, sizes.seconds / 10)
        progress("loading the paper's mixture")
        paper = (
            Source(path=texts, task="text"),
            Source(path=large, task="text_to_image", swap_ratio=0.2),
        )
        _measure_speed(result, "load", paper, 2048, sizes, checkpoint)
        progress("loading small images")
        icons = (Source(path=small, task="text_to_image", swap_ratio=0.2),)
        _measure_speed(result, "load_small", icons, 512, sizes, checkpoint)
        for count in sizes.samples:
            progress(f"memory with {count:,} records")
            records = image_records(sizes.shard_records, 8, 4)
            copies = count // sizes.shard_records
            many = write_synthetic(folder / f"{count}", records, copies)
            _measure_memory(result, many, count, sizes, checkpoint)
    result.settings["loading"] = {
        "workers": sizes.workers,
        "streams": _STREAMS,
        "packing_buffer": sizes.packing_buffer,
    }


def image_records(count: int, side: int, words: int) -> list[Sample]:
    """Make images of side x side random codes, with captions of random words."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODEBOOK, (count, side, side), dtype=np.uint16)
    chosen = rng.integers(0, len(WORDS), (count, words)).tolist()
    return [
        Sample(
            kind="image_text",
            key=f"{number:08d}",
            source="synthetic",
            license="CC0-1.0",
            captions=(" ".join(WORDS[index] for index in indices),),
            image_codes=(grid,),
        )
        for number, (grid, indices) in enumerate(zip(codes, chosen, strict=True))
    ]


def text_records(count: int, words: int) -> list[Sample]:
    """Make documents of random words with log-normal lengths of the given mean."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(words) - 0.5, 1.0, count).astype(int) + 1
    return [
        Sample(
            kind="text",
            key=f"{number:08d}",
            source="synthetic",
            license="CC0-1.0",
            text=" ".join(WORDS[index] for index in rng.integers(0, len(WORDS), length)),
        )
        for number, length in enumerate(lengths)
    ]


def write_synthetic(folder: Path, records: Sequence[Sample], copies: int = 1) -> Path:
    """Write a folder of equal shards, which needs as much disk and as many files as real data.

    Raises:
        LiquidError: The disk has less room than that and 1 GiB.
    """
    provenance = Provenance(
        fingerprint="synthetic",
        codebook_size=CODEBOOK,
        downsample_factor=8,
        source="synthetic",
        source_digest="synthetic",
        settings={},
    )
    begin(folder, provenance, copies)
    first = write_shard(folder, 0, "synthetic", records, [], CODEBOOK)
    needed, free = first.stat().st_size * copies + _DISK_MARGIN, shutil.disk_usage(folder).free
    if needed > free:
        raise LiquidError(
            f"{folder}: needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free. Choose "
            "another folder with --scratch."
        )
    for number in range(1, copies):
        shutil.copyfile(first, folder / shard_name(number))
    finish(folder, provenance, copies)
    return folder


def _measure_reading(result: Result, folder: Path, seconds: float) -> None:
    """Read records at random, in one process."""
    records = read_shards(folder).of_kind("image_text")
    order = np.random.default_rng(0).integers(0, len(records), len(records)).tolist()
    for index in order:  # brings the file into the page cache
        records[index]
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        for index in order[:1000]:
            records[index]
        count += len(order[:1000])
    result.add("read_rows_per_s", count / elapsed, "records/s")
    size = folder.joinpath("shard-00000.arrow").stat().st_size / len(records)
    result.add("read_megabytes_per_s", count / elapsed * size / 1e6, "MB/s")
    result.add("bytes_per_picture", size, "B", "1,024 codes and a caption of 40 words")


def _measure_speed(
    result: Result,
    name: str,
    sources: Sequence[Source],
    seq_len: int,
    sizes: LoadingSizes,
    checkpoint: Path,
) -> None:
    """Take sequences as fast as they come, in whole packing buffers."""
    from _reference import padded_efficiency  # imports too much for the memory measurement

    packing = PackingConfig(seq_len=seq_len, packing_buffer=sizes.packing_buffer)
    stream = _open(checkpoint, sources, packing, sizes.workers)
    try:
        sequences, rounds = _take_buffers(stream, 1), 1
        start, count, filled = time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - start) < sizes.seconds:
            rounds += 1
            sequences = _take_buffers(stream, rounds)
            count += len(sequences)
            filled += sum(one.num_tokens for one in sequences)
    finally:
        stream.close()
    result.add(f"{name}_tokens_per_s", filled / elapsed, "tokens/s")
    result.add(f"{name}_rows_per_s", count / elapsed, "sequences/s")
    megabytes = count * seq_len * _TOKEN_BYTES / 1e6
    result.add(f"{name}_megabytes_per_s", megabytes / elapsed, "MB/s")
    result.add(f"{name}_fill", 100 * filled / (count * seq_len), "%")
    note = "the same documents in batches of 16"
    result.add(f"{name}_padded_fill", 100 * padded_efficiency(sequences, 16), "%", note)


def _take_buffers(stream: TokenStream, rounds: int) -> list[PackedSequence]:
    """Take sequences until each stream has completed so many packing buffers."""
    taken: list[PackedSequence] = []
    while _buffers(stream) < rounds * _STREAMS:
        taken += stream.next(range(_STREAMS))
    return taken


def _buffers(stream: TokenStream) -> int:
    return sum(position["buffer"] for position in stream.state_dict()["streams"].values())


def _measure_memory(
    result: Result, folder: Path, count: int, sizes: LoadingSizes, checkpoint: Path
) -> None:
    """Measure the memory of a fresh process after it has sampled some records."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        anonymous, mapped = pool.submit(_load_and_measure, checkpoint, folder, sizes).result()
    note = f"anonymous memory of the process, after {sizes.sampled_records:,} records"
    result.add(f"load_memory_{count}", anonymous / _MIB, "MiB", note)
    note = "mapped files: shards in the page cache, libraries"
    result.add(f"load_mapped_{count}", mapped / _MIB, "MiB", note)


def _load_and_measure(checkpoint: Path, folder: Path, sizes: LoadingSizes) -> tuple[int, int]:
    """Load some sequences; return the anonymous and the file-backed bytes of this process."""
    source = Source(path=folder, task="text_to_image")
    packing = PackingConfig(seq_len=256, packing_buffer=sizes.packing_buffer)
    stream = _open(checkpoint, (source,), packing, 0)
    records = read_manifest(folder).totals.records
    while stream.epochs[0] * records < sizes.sampled_records:
        stream.next(range(_STREAMS))
    anonymous, mapped = (
        kernel_bytes("/proc/self/status", name) or 0 for name in ("RssAnon", "RssFile")
    )
    return anonymous, mapped


def _open(
    checkpoint: Path, sources: Sequence[Source], packing: PackingConfig, workers: int
) -> TokenStream:
    builder = ExampleBuilder(LiquidProcessor.from_pretrained(checkpoint).sequences)
    return TokenStream(sources, builder, packing, 0, num_streams=_STREAMS, num_workers=workers)
