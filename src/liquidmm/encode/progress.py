"""What all workers have done so far, and the one word that stops them: small files in one folder.

Contract: works between threads, processes and machines that share a file system. Every task writes
its own counts, whole or not at all; anyone adds them up. Whoever finds that too many entries were
refused, or can't go on, writes the reason once; all others end before their next batch.
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
from liquidmm.encode.part import Seen
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError, MissingExtraError
from liquidmm.files import atomic_file

_EVERY = 0.5
"""Seconds between two looks at the files."""
_CHECK_EVERY = 10.0
"""Seconds between two times that a task adds up what all have done."""
_STOP = "stop"
_KINDS = (ConfigError, DataError, CheckpointError, MissingExtraError)


class StoppedError(Exception):
    """Somebody said that all work ends; not an error of the one that finds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What was done."""

    entries: int = 0
    """Entries that were read."""
    refused: int = 0
    """Problems with entries or their pictures."""
    pictures: int = 0
    """Pictures that were encoded."""
    parts: int = 0
    """Parts that were finished."""
    problem: str = ""
    """One of the problems."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            entries=self.entries + other.entries,
            refused=self.refused + other.refused,
            pictures=self.pictures + other.pictures,
            parts=self.parts + other.parts,
            problem=self.problem or other.problem,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """When too many entries were refused."""

    share: float
    """Share of refused entries above which the work ends, 0 to 1."""
    least: int
    """Entries before which nothing is said."""
    before: Counts
    """What earlier runs have done."""
    quarantine: Path
    """File that the refused entries go to."""

    def exceeded(self, now: Counts) -> DataError | None:
        """Say that there are too many, with one of the reasons; None when there are not."""
        total = self.before + now
        if total.entries < self.least or total.refused <= self.share * total.entries:
            return None
        reason = f" The first reason: {total.problem}" if total.problem else ""
        return DataError(
            f"{self.quarantine}: {total.refused} of {total.entries} entries were refused, more "
            f"than max_failures = {self.share:g}. Correct the source or raise it.{reason}"
        )

    def broken(self, totals: ShardStats, problem: str) -> DataError | None:
        """Say the same of all that is on disk when nothing is left to do.

        Args:
            totals: What the shards hold, all runs together.
            problem: One of the problems, if it is known.
        """
        everything = Counts(
            entries=totals.records + totals.rejected, refused=totals.rejected, problem=problem
        )
        return replace(self, least=0, before=Counts()).exceeded(everything)


class Progress:
    """The folder of counts."""

    def __init__(self, folder: Path) -> None:
        """Set up; `clear` makes the folder."""
        self.folder = folder

    def clear(self) -> None:
        """Forget what an earlier run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()

    def counts(self) -> Counts:
        """Add up the counts of all tasks."""
        total = Counts()
        for path in sorted(self.folder.glob("task-*.json")):
            with contextlib.suppress(OSError):
                total += Counts(**json.loads(path.read_text(encoding="utf-8")))
        return total

    def stop(self, error: LiquidError) -> None:
        """Tell all tasks to end; only the first reason stays."""
        if self.error() is None:
            with atomic_file(self.folder / _STOP) as temporary:
                text = f"{type(error).__name__}\n{error}"
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    def error(self) -> LiquidError | None:
        """Return why all tasks are to end; None when they aren't."""
        try:
            text = (self.folder / _STOP).read_text(encoding="utf-8")
        except OSError:
            return None
        name, _, reason = text.partition("\n")
        kind = next((kind for kind in _KINDS if kind.__name__ == name), LiquidError)
        return kind(reason)


class TaskProgress:
    """The counts of one task."""

    def __init__(self, progress: Progress, task: int, limit: Limit) -> None:
        """Begin at nothing."""
        self._progress = progress
        self._path = progress.folder / f"task-{task:05d}.json"
        self._limit = limit
        self._finished = self._part = Counts()
        self._written = self._checked = time.monotonic()

    def tell(self, seen: Seen) -> None:
        """Count, and look from time to time whether to go on.

        Raises:
            StoppedError: All work is to end.
        """
        problem = seen.problem
        self._part += Counts(
            entries=seen.entries, refused=bool(problem), pictures=seen.pictures, problem=problem
        )
        now = time.monotonic()
        if now - self._written >= _EVERY:
            self._written = now
            self._write()
        if now - self._checked >= _CHECK_EVERY:
            self._check(now)

    def finish_part(self, entries: int, refused: int) -> None:
        """Count a part with its exact numbers, and look whether to go on.

        Args:
            entries: Entries of the part.
            refused: Those of them that were refused.

        Raises:
            StoppedError: All work is to end.
        """
        self._finished += replace(self._part, entries=entries, refused=refused, parts=1)
        self._part = Counts()
        self._write()
        self._check(time.monotonic())

    def _write(self) -> None:
        with atomic_file(self._path) as temporary:
            text = json.dumps(asdict(self._finished + self._part))
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        if self._progress.error() is not None:
            raise StoppedError

    def _check(self, now: float) -> None:
        self._checked = now
        error = self._limit.exceeded(self._progress.counts())
        if error is not None:
            self._progress.stop(error)
            raise StoppedError


@contextlib.contextmanager
def shown(progress: Progress, before: Counts, entries: int | None, parts: int) -> Iterator[None]:
    """Show a bar on stderr while the block runs: entries, time left, images/s, refused ones.

    Args:
        progress: Where the tasks count.
        before: What earlier runs have done.
        entries: Entries of the source; None where that isn't known before it has been read: then
            the parts tell how far it is.
        parts: Parts of the source.

    Yields:
        Nothing.
    """
    ended = threading.Event()
    bar = tqdm(total=entries, initial=before.entries, unit="rec", desc="encode", disable=None)

    def show() -> None:
        now = progress.counts()
        total = before + now
        if total.parts == parts:
            bar.total = total.entries  # those of other splits were none
        elif entries is None and total.parts:
            bar.total = round(total.entries / total.parts * parts)
        bar.n = total.entries
        speed = now.pictures / max(bar.format_dict["elapsed"], 1e-9)
        bar.set_postfix_str(f"{speed:.3g} images/s, {total.refused} refused")

    def keep_showing() -> None:
        while not ended.wait(_EVERY):
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
