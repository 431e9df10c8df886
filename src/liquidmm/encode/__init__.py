"""Records to shards: every picture becomes codes once, before training.

Contract: part n of the source becomes shard n, whatever happened before and whoever does it, so a
second run does what is missing and a finished folder stays as it is. An entry that can't be used
goes to `quarantine.jsonl` with its reason; a run in which too many do is stopped.

`prepare` brings pictures to the sizes of the tokenizer, `part` encodes a part of the source, `job`
is the step that writes shards, `engine` runs it in processes of this machine, on Slurm or on Ray,
`progress` is how they know of each other.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from liquidmm.data.manifest import MANIFEST, REJECTED, Manifest, Provenance, read_manifest
from liquidmm.data.readers import SourceConfig, digest, list_chunks
from liquidmm.data.shard_file import shard_name
from liquidmm.data.shard_folder import begin, finish, tally, write_quarantine
from liquidmm.encode import engine as engines
from liquidmm.encode.config import (
    BucketConfig,
    EncodeConfig,
    EncodeRun,
    EngineConfig,
    SlurmConfig,
    settings,
)
from liquidmm.encode.engine import WorkerKilledError
from liquidmm.encode.images import Preparation
from liquidmm.encode.job import Job, TokenizerFile
from liquidmm.encode.precision import choose_precision
from liquidmm.encode.progress import Counts, Limit, Progress, shown
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer, Precision
from liquidmm.runtime import get_logger

__all__ = [
    "BucketConfig",
    "EncodeConfig",
    "EncodeRun",
    "EngineConfig",
    "Preparation",
    "SlurmConfig",
    "TokenizerFile",
    "encode",
]

_WORK = ".encode"
"""Folder in the folder of shards for log files and counts; it goes when all shards are there."""


_JUDGED = 1000
"""Entries before which no share of refused ones ends a run."""


def encode(
    source: SourceConfig,
    tokenizer: Callable[[], ImageTokenizer],
    out: Path,
    config: EncodeConfig | None = None,
    engine: EngineConfig | None = None,
) -> Manifest:
    """Encode a source into a folder of shards, or finish what an earlier run began.

    Args:
        source: What is encoded.
        tokenizer: Gives the image tokenizer; a `TokenizerFile`, or any callable. Another callable
            is called in this process, or pickled when `engine` wants several.
        out: Folder for shards, manifest and quarantine.
        config: How pictures are prepared and rows are stored; None: as by default.
        engine: Where and by how many processes; None: as by default.

    Returns:
        The manifest of the finished folder; that of an unfinished one when the work was handed to
        Slurm.

    Raises:
        ConfigError: The sizes don't fit the tokenizer, its codes don't fit 16 bits, a setting of
            the source is wrong, or the engine isn't there.
        DataError: The source is missing or empty, the folder belongs to other settings, or too many
            entries were refused.
        LiquidError: The disk refused, a URL can't be read now, or a worker was killed.
    """
    return _Encoding(
        source, tokenizer, out, config or EncodeConfig(), engine or EngineConfig()
    ).run()


class _Encoding:
    """One call of `encode`: what it opens, begins, has done and finishes."""

    def __init__(
        self,
        source: SourceConfig,
        tokenizer: Callable[[], ImageTokenizer],
        out: Path,
        config: EncodeConfig,
        engine: EngineConfig,
    ) -> None:
        here = tokenizer
        if isinstance(here, TokenizerFile) and engine.kind != "local":
            here = replace(here, device="cpu")  # the machine that submits may have no GPU
        opened = here()
        Preparation(config, opened.downsample_factor)
        if opened.codebook_size > 2**16:
            raise ConfigError(
                f"tokenizer: {opened.codebook_size} codes do not fit 16 bits. Use at most 65536."
            )
        self.source, self.out, self.config, self.engine = source, out, config, engine
        self.parts = list_chunks(source, config.shard_records)
        counts = [part.count for part in self.parts]
        self.entries = None if None in counts else sum(count for count in counts if count)
        self.progress = Progress(out / _WORK / "counts")
        self.device = opened.device
        self.tokenizer = tokenizer
        precision: Precision = "float32"
        if isinstance(tokenizer, TokenizerFile) and isinstance(here, TokenizerFile):
            elsewhere = engine.kind != "local"
            precision = choose_precision(here, source, self.parts, config, elsewhere=elsewhere)
            self.tokenizer = replace(tokenizer, precision=precision)
        elif engine.kind == "local" and not engine.workers:
            self.engine = replace(engine, workers=1)
        self.origin = Provenance(
            fingerprint=opened.fingerprint,
            codebook_size=opened.codebook_size,
            downsample_factor=opened.downsample_factor,
            source=", ".join(source.paths),
            source_digest=digest(source),
            settings=settings(source, config, precision),
        )

    def run(self) -> Manifest:
        """Do what is missing, as long as it gets on."""
        missing = begin(self.out, self.origin, len(self.parts))
        if not missing and read_manifest(self.out).complete:
            return self._finished()
        if missing and self.engine.kind == "slurm":
            self._hear()
        while missing:
            missing = self._attempt(missing)
            if missing and self.engine.kind == "slurm":
                return read_manifest(self.out)
        self._check()
        return self._finished()

    def _hear(self) -> None:
        """Say what an earlier job of Slurm had to say, once: nobody waited for it."""
        engines.check_ended(self.progress.folder.parent)
        error = self.progress.error()
        if error is not None:
            self.progress.clear()
            write_quarantine(self.out)
            raise error

    def _attempt(self, missing: list[int]) -> list[int]:
        """Run the engine once; returns the numbers of the shards that are still missing."""
        done = tally(self.out)
        before = Counts(
            entries=done.records + done.refused,
            refused=done.refused,
            parts=len(self.parts) - len(missing),
        )
        self.progress.clear()
        workers = engines.workers_of(self.engine, self.device, len(missing))
        tasks = engines.tasks_of(self.engine, workers, len(missing))
        job = self._job(missing, workers, before)
        killed: WorkerKilledError | None = None
        try:
            with shown(self.progress, before, self.entries, len(self.parts)):
                engines.run(job, self.engine, workers, tasks)
        except WorkerKilledError as error:
            killed = error
        left = begin(self.out, self.origin, len(self.parts))
        told = killed or self.progress.error()
        if told is None:
            return left
        if killed is not None and len(left) < len(missing):
            get_logger(__name__).warning(f"{killed} Going on with the {len(left)} shards left")
            return left
        write_quarantine(self.out)
        raise told

    def _job(self, missing: list[int], workers: int, before: Counts) -> Job:
        return Job(
            source=self.source,
            numbers=tuple(missing),
            missing=tuple(self.parts[number] for number in missing),
            parts=len(self.parts),
            origin=self.origin,
            out=self.out,
            tokenizer=self.tokenizer,
            config=self.config,
            limit=self._limit(before),
            threads=self.engine.threads,
            decoders=engines.decoders_of(self.engine, self.device, workers),
            progress=self.progress.folder,
            finishes=self.engine.kind == "slurm",
        )

    def _limit(self, before: Counts) -> Limit:
        return Limit(
            share=self.config.max_failures,
            least=min(_JUDGED, self.entries or _JUDGED),
            before=before,
            quarantine=self.out / REJECTED,
        )

    def _check(self) -> None:
        """Refuse to finish a folder of which too little became rows."""
        totals = tally(self.out)
        name = self.origin.source
        if not totals.records + totals.refused:
            self._remove()
            splits = ", ".join(self.source.splits)
            what = f"no records of the splits {splits}" if splits else "no records"
            raise DataError(f"{name}: {what}. Check the source.")
        error = self._limit(Counts()).broken(totals, self.progress.counts().problem)
        if error is not None:
            write_quarantine(self.out)
            raise error

    def _remove(self) -> None:
        """Take back a folder of empty shards."""
        for number in range(len(self.parts)):
            (self.out / shard_name(number)).unlink()
        (self.out / MANIFEST).unlink()
        shutil.rmtree(self.out / _WORK)
        with contextlib.suppress(OSError):  # something else is there
            self.out.rmdir()

    def _finished(self) -> Manifest:
        manifest = finish(self.out, self.origin, len(self.parts))
        shutil.rmtree(self.out / _WORK, ignore_errors=True)
        return manifest
