"""Training metrics: loss and accuracy per task, loss spikes, metrics.jsonl and trackers.

metrics.jsonl is authoritative; trackers get the same values. A resumed run first removes the lines
after its checkpoint, so no step appears twice. Training metrics are averages since the previous
line or, after resuming, since the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from liquidmm.errors import LiquidError
from liquidmm.files import write_text
from liquidmm.runtime import require_extra
from liquidmm.train.loss import LossResult

_MAX_DECAY = 0.98
_MIN_STEPS = 20


class LossMeter:
    """Adds up the counts of one or more batches."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        """Start at zero; ``tasks`` lists the names in the order of the task ids."""
        self._tasks = tasks
        self._sums: Tensor | None = None

    def add(self, result: LossResult) -> None:
        """Add one batch; nothing is copied from the device yet."""
        new = torch.stack([result.nll, result.correct, result.counts]).double()  # (3, tasks)
        self._sums = new if self._sums is None else self._sums + new

    def merge(self, other: LossMeter) -> None:
        """Add the counts of another meter."""
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def report(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return mean loss in nats and token accuracy, overall and for each task in the data.

        The keys are "loss", "accuracy", "loss/chat" and so on; "tokens" is the number of targets.
        ``reduce`` sums a tensor over the ranks; every rank must have added something.
        """
        if self._sums is None:
            return {"tokens": 0}
        nll, correct, counts = reduce(self._sums.clone()).tolist()
        report: dict[str, float] = {"tokens": int(sum(counts))}
        totals = [("", sum(nll), sum(correct), sum(counts))]
        totals += [
            (f"/{task}", *values)
            for task, *values in zip(self._tasks, nll, correct, counts, strict=True)
        ]
        for suffix, loss, hits, count in totals:
            if count:
                report[f"loss{suffix}"] = round(loss / count, 7)
                report[f"accuracy{suffix}"] = round(hits / count, 7)
        return report


class LossSpikeDetector:
    """Detects losses far above the running mean; it does not change the training."""

    def __init__(self, sigma: float) -> None:
        """Set the threshold in standard deviations above the mean; 0 detects nothing."""
        self._sigma = sigma
        self.load_state_dict({"mean": 0.0, "square": 0.0, "steps": 0})

    def state_dict(self) -> dict[str, float]:
        """Return the running statistics as JSON-compatible values."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from the result of `state_dict`."""
        self._mean, self._square = state["mean"], state["square"]
        self._steps = int(state["steps"])

    def update(self, loss: float) -> str | None:
        """Add the mean loss of a step.

        Returns:
            A description of the spike, or None. The first steps are never spikes, and spikes do not
            enter the statistics.
        """
        deviation = math.sqrt(max(0.0, self._square - self._mean**2))
        # The loss of a converged run hardly varies; a rise of less than 0.01 is not a spike.
        limit = self._mean + self._sigma * max(deviation, 0.01)
        if self._sigma and self._steps >= _MIN_STEPS and loss > limit:
            return f"loss {loss:.4f}, {self._mean:.4f} +- {deviation:.4f} before"
        decay = min(_MAX_DECAY, self._steps / (self._steps + 1))
        self._mean = decay * self._mean + (1 - decay) * loss
        self._square = decay * self._square + (1 - decay) * loss**2
        self._steps += 1
        return None


class Tracker(Protocol):
    """A destination for metrics besides metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step."""

    def close(self) -> None:
        """Flush and close."""


class _TensorBoard:
    """Event files for `tensorboard --logdir OUT/tensorboard`."""

    def __init__(self, out: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard hides the events of earlier files after ``step``.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _HostedTracker:
    """Weights & Biases or Trackio, which share an API; the run is named after the folder ``out``.

    Their messages go to stderr.
    """

    def __init__(self, name: str, out: Path, config: Mapping[str, Any]) -> None:
        self._module: Any = require_extra(name, name)
        project = out.resolve().parent.name or "liquid"
        with contextlib.redirect_stdout(sys.stderr):
            self._module.init(project=project, name=out.name, config=dict(config), resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


def open_trackers(
    names: Sequence[str], out: Path, step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """Open TensorBoard and the named trackers ("wandb", "trackio"), which must be installed."""
    hosted = [_HostedTracker(name, out, config) for name in names]
    return [_TensorBoard(out, step), *hosted]


class MetricsLog:
    """metrics.jsonl, the progress bar and the trackers of one run; a context manager."""

    def __init__(
        self,
        path: Path | None,
        *,
        step: int,
        steps: int,
        trackers: Sequence[Tracker] = (),
        utilization: Callable[[float], float] | None = None,
    ) -> None:
        """Open the file and remove the lines after ``step``; a ``path`` of None logs nothing.

        ``utilization`` converts tokens per second to the model FLOPs utilization.
        """
        self._path = path
        self._utilization = utilization
        self._trackers = trackers
        if path is not None:
            kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._bar = tqdm(
            total=steps, initial=step, unit="step", disable=path is None, dynamic_ncols=True
        )
        self._start = time.perf_counter()
        self._paused = 0.0
        self._tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()

    def advance(self, tokens: int) -> None:
        """Count one step."""
        self._tokens += tokens
        self._bar.update(1)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of a block (evaluation, samples, checkpoints) from the speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a line with the speed since the previous one, and update the progress bar."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self._start - self._paused)
        speed = round(self._tokens / seconds, 1)
        self._start, self._paused, self._tokens = now, 0.0, 0
        measured = {"tokens_per_second": speed, "memory_gib": peak_memory()}
        if self._utilization is not None:
            measured["mfu"] = self._utilization(speed)
        self.append(step, metrics | measured)
        shown = {"loss": f"{metrics.get('loss', math.nan):.3f}", "tok/s": f"{speed:.0f}"}
        self._bar.set_postfix(shown)

    def append(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a line, or raise a `LiquidError` if the file cannot be written."""
        if self._path is None:
            return
        for tracker in self._trackers:
            tracker.log(step, metrics)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")
        except OSError as error:
            raise LiquidError(
                f"{self._path}: cannot be written ({error.strerror}). Free some space and run the "
                "same command again; it resumes from the last checkpoint."
            ) from error


def peak_memory() -> float:
    """Return the peak memory of this process in GiB: GPU memory if there is a GPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, if it exists; a line truncated by a crash is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
