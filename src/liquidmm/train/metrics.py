"""What a run reports: speed, memory, loss and accuracy for each task, gradient norm, learning rate.

Contract: `LossMeter` adds up what the loss counted; `MetricsLog` appends one JSON object a line and
shows the gist on a progress bar. A resumed run first drops the lines after the step it goes on
from, so that no step is there twice. Training figures are means since the line before or, after a
resume, since the save.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from liquidmm.errors import LiquidError
from liquidmm.files import atomic_file
from liquidmm.train.loss import LossResult
from liquidmm.train.trackers import Tracker


class LossMeter:
    """Adds up the counts of one or more batches."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        """Start at zero.

        Args:
            tasks: Names in the order of the loss's task ids.
        """
        self._tasks = tasks
        self._sums: Tensor | None = None

    def add(self, result: LossResult) -> None:
        """Take in one batch; nothing is copied from the device yet."""
        new = torch.stack([result.nll, result.correct, result.counts]).double()  # (3, tasks)
        self._sums = new if self._sums is None else self._sums + new

    def merge(self, other: LossMeter) -> None:
        """Take in what another one added up."""
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def report(self, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Give mean loss in nats and token accuracy, in all and for each task that was seen.

        Args:
            total: Adds a tensor up over the ranks; all of them must have seen something.

        Returns:
            "loss", "accuracy", "loss/chat" and so on; "tokens" is the number of labels.
        """
        if self._sums is None:
            return {"tokens": 0}
        nll, correct, counts = total(self._sums.clone()).tolist()
        report: dict[str, float] = {"tokens": int(sum(counts))}
        rows = [("", sum(nll), sum(correct), sum(counts))]
        rows += [
            (f"/{task}", *row) for task, *row in zip(self._tasks, nll, correct, counts, strict=True)
        ]
        for suffix, loss, hits, count in rows:
            if count:
                report[f"loss{suffix}"] = round(loss / count, 7)
                report[f"accuracy{suffix}"] = round(hits / count, 7)
        return report


class MetricsLog:
    """metrics.jsonl and the progress bar of one run; a context manager."""

    def __init__(
        self,
        path: Path | None,
        *,
        step: int,
        steps: int,
        trackers: Sequence[Tracker] = (),
        utilization: Callable[[float], float] | None = None,
    ) -> None:
        """Open the file and drop the lines after ``step``.

        Args:
            path: The JSON lines file; None writes and shows nothing.
            step: Steps done before; 0 starts a new file.
            steps: Steps of the whole run.
            trackers: Where the figures go as well; they are closed at the end.
            utilization: Turns ids per second into the model FLOPs utilization.
        """
        self._path = path
        self._utilization = utilization
        self._trackers = trackers
        if path is not None:
            _truncate(path, step)
        self._bar = tqdm(
            total=steps, initial=step, unit="step", disable=path is None, dynamic_ncols=True
        )
        self._began = time.perf_counter()
        self._paused = 0.0
        self._ids = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar and the trackers."""
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()

    def advance(self, ids: int) -> None:
        """Count one step of so many ids."""
        self._ids += ids
        self._bar.update(1)

    def pause(self) -> PauseClock:
        """Give a context whose time doesn't count for the speed (validation, samples, saves)."""
        return PauseClock(self)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line with the speed since the last one, and refresh the bar.

        Args:
            step: Steps done.
            values: JSON-able figures.
        """
        now = time.perf_counter()
        seconds = max(1e-9, now - self._began - self._paused)
        speed = round(self._ids / seconds, 1)
        self._began, self._paused, self._ids = now, 0.0, 0
        measured = {"tokens_per_second": speed, "memory_gib": peak_memory()}
        if self._utilization is not None:
            measured["mfu"] = self._utilization(speed)
        self.append(step, values | measured)
        shown = {"loss": f"{values.get('loss', math.nan):.3f}", "tok/s": f"{speed:.0f}"}
        self._bar.set_postfix(shown)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Append a line as it is.

        Raises:
            LiquidError: The disk refused.
        """
        if self._path is None:
            return
        for tracker in self._trackers:
            tracker.log(step, values)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except OSError as error:
            raise LiquidError(
                f"{self._path}: can't be written ({error.strerror}). "
                "Make room and give the same command again; it goes on from the last save."
            ) from error

    def wait(self, seconds: float) -> None:
        """Leave so many seconds out of the speed."""
        self._paused += seconds


class PauseClock:
    """Leaves the time of its block out of a log's speed."""

    def __init__(self, log: MetricsLog) -> None:
        """Remember the log."""
        self._log = log
        self._began = 0.0

    def __enter__(self) -> None:
        """Start."""
        self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._log.wait(time.perf_counter() - self._began)


def peak_memory() -> float:
    """Give the most memory this process has held so far, in GiB: the GPU's where there is one."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a line cut off by a crash is left out.

    Args:
        path: The JSON lines file.

    Returns:
        One dict a line, in order; empty when there is no file.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _truncate(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
