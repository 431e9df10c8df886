"""Shared progress counters and a stop flag, as small files in one folder.

They work across threads, processes and machines that share a file system. Each task writes its own
counts atomically and adds up the counts of all tasks to enforce the error budget. The process that
started the tasks, or one that failed, writes the stop flag; the others end before their next batch.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from liquidmm.data.manifest import ShardStats
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError, MissingExtraError
from liquidmm.files import write_text

_WRITE_EVERY = 0.5
"""Seconds between two updates of the files and of the progress bar."""
_CHECK_EVERY = 10.0
"""Seconds between two checks of the error budget by a task."""
_STOP = "stop"
_KINDS = (ConfigError, DataError, CheckpointError, MissingExtraError)


class StoppedError(Exception):
    """Another process set the stop flag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Counts of finished work."""

    records: int = 0
    """Records read from the source."""
    rejected: int = 0
    """Number of rejected records and images."""
    images: int = 0
    """Encoded images."""
    shards: int = 0
    """Finished shards."""
    problem: str = ""
    """Error message of one rejected record."""

    @classmethod
    def of(cls, stats: ShardStats, problem: str = "") -> Counts:
        """Count the records of finished shards."""
        records = stats.records + stats.rejected
        return cls(records=records, rejected=stats.rejected, problem=problem)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            records=self.records + other.records,
            rejected=self.rejected + other.rejected,
            images=self.images + other.images,
            shards=self.shards + other.shards,
            problem=self.problem or other.problem,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBudget:
    """The maximum fraction of rejected records."""

    max_rate: float
    """Maximum fraction of rejected records, 0 to 1."""
    min_records: int
    """Minimum number of records for the check."""
    rejected_file: Path
    """File that lists the rejected records, for the message."""

    def check(self, counts: Counts) -> None:
        """Check the fraction of rejected records; raise a `DataError` if it is too large."""
        if counts.records < self.min_records or counts.rejected <= self.max_rate * counts.records:
            return
        reason = f" The first problem: {counts.problem}" if counts.problem else ""
        raise DataError(
            f"{self.rejected_file}: {counts.rejected} of {counts.records} records were rejected, "
            f"more than max_error_rate = {self.max_rate:g}. Fix the source or raise the rate."
            f"{reason}"
        )


class Progress:
    """The folder of counters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Create the folder, or delete the counts and the stop flag of an earlier run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()

    def counts(self) -> Counts:
        """Sum the counts of all tasks."""
        total = Counts()
        for path in sorted(self.folder.glob("task-*.json")):
            with contextlib.suppress(OSError):
                total += Counts(**json.loads(path.read_text(encoding="utf-8")))
        return total

    def stop(self, error: LiquidError) -> None:
        """Stop all tasks because of an error; only the first error is kept."""
        if self.error() is None:
            write_text(self.folder / _STOP, f"{type(error).__name__}\n{error}")

    def error(self) -> LiquidError | None:
        """Return the error that stopped the tasks, or None."""
        try:
            text = (self.folder / _STOP).read_text(encoding="utf-8")
        except OSError:
            return None
        name, _, reason = text.partition("\n")
        kind = next((kind for kind in _KINDS if kind.__name__ == name), LiquidError)
        return kind(reason)


class TaskProgress:
    """The counts of one task."""

    def __init__(
        self, progress: Progress, task: int, budget: ErrorBudget, before: Counts | None = None
    ) -> None:
        """Start at zero; the budget is checked regularly against the counts of all tasks.

        ``before`` counts earlier runs, which no task includes in its own.
        """
        self._progress = progress
        self._path = progress.folder / f"task-{task:05d}.json"
        self._budget = budget
        self._before = before or Counts()
        self._finished = self._current = Counts()
        self._written = self._checked = time.monotonic()

    def update(self, counts: Counts) -> None:
        """Add to the counts of the current shard.

        Raises:
            StoppedError: The stop flag is set.
            DataError: Too many records were rejected.
        """
        self._current += counts
        now = time.monotonic()
        if now - self._written >= _WRITE_EVERY:
            self._written = now
            self._write()
        if now - self._checked >= _CHECK_EVERY:
            self._check(now)

    def finish_shard(self, stats: ShardStats) -> None:
        """Replace the counts of the current shard with the exact numbers; raises as `update`."""
        exact = Counts.of(stats, self._current.problem)
        self._finished += replace(exact, images=self._current.images, shards=1)
        self._current = Counts()
        self._write()
        self._check(time.monotonic())

    def _write(self) -> None:
        write_text(self._path, json.dumps(asdict(self._finished + self._current)))
        if self._progress.error() is not None:
            raise StoppedError

    def _check(self, now: float) -> None:
        self._checked = now
        self._budget.check(self._before + self._progress.counts())


@contextlib.contextmanager
def progress_bar(
    progress: Progress, before: Counts, num_records: int | None, num_shards: int
) -> Iterator[None]:
    """Show a progress bar on stderr if it is a terminal.

    ``before`` counts earlier runs. Without ``num_records``, the records in the source, the total is
    estimated from the finished shards.
    """
    ended = threading.Event()
    bar = tqdm(total=num_records, initial=before.records, unit="rec", desc="encode", disable=None)

    def show() -> None:
        now = progress.counts()
        total = before + now
        if total.shards == num_shards:
            bar.total = total.records  # records of other splits are not counted
        elif num_records is None and total.shards:
            bar.total = round(total.records / total.shards * num_shards)
        bar.n = total.records
        speed = now.images / max(bar.format_dict["elapsed"], 1e-9)
        bar.set_postfix_str(f"{speed:.3g} images/s, {total.rejected} rejected")

    def keep_showing() -> None:
        while not ended.wait(_WRITE_EVERY):
            show()

    thread = threading.Thread(target=keep_showing, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if not bar.disable:
            thread.join()
            show()
        bar.close()
