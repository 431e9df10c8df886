"""Looking after a run: spikes of the loss, and what to keep of a step that failed.

Contract: the watcher looks at each step's mean loss and says which step stood out and what data it
was; it changes nothing, and what it has learnt is saved with the run. A step whose loss or gradient
is no number leaves its rows behind as OUT/failed/step-N-rank-R.safetensors, with the names of the
records they were made from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file

from liquidmm.data.packing import PackedSequence
from liquidmm.files import atomic_file
from liquidmm.train.batch import Batch

_MEMORY = 0.98
_LEARNING = 20


class LossSpikeDetector:
    """Tells a loss that lies far above those before it."""

    def __init__(self, deviations: float) -> None:
        """Start without memory.

        Args:
            deviations: Standard deviations above the mean that make a spike; 0 finds none.
        """
        self._deviations = deviations
        self._mean = 0.0
        self._square = 0.0
        self._seen = 0

    def state(self) -> dict[str, float]:
        """Return what it has learnt as JSON-able values."""
        return {"mean": self._mean, "square": self._square, "seen": self._seen}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned."""
        self._mean, self._square = state["mean"], state["square"]
        self._seen = int(state["seen"])

    def update(self, loss: float) -> str | None:
        """Take in one step's loss.

        Args:
            loss: Mean loss of the step.

        Returns:
            What stood out, or None. The first steps teach what is usual; no spike does.
        """
        spread = math.sqrt(max(0.0, self._square - self._mean**2))
        # A run that learns nothing new has no spread; below a hundredth nothing is a spike.
        limit = self._mean + self._deviations * max(spread, 0.01)
        if self._deviations and self._seen >= _LEARNING and loss > limit:
            return f"loss {loss:.4f}, {self._mean:.4f} +- {spread:.4f} before"
        keep = min(_MEMORY, self._seen / (self._seen + 1))
        self._mean = keep * self._mean + (1 - keep) * loss
        self._square = keep * self._square + (1 - keep) * loss**2
        self._seen += 1
        return None


def write_failed(
    out: Path, step: int, rank: int, rows: Sequence[PackedSequence], batch: Batch
) -> Path:
    """Keep the rows of a step that failed.

    Args:
        out: Folder of the run.
        step: Number of the step, from 1.
        rank: Whose rows they are.
        rows: The packed rows.
        batch: The same as tensors.

    Returns:
        The file: `input_ids`, `position_ids`, `target` and `task_ids`, (B, T) each; the names of
        the records of each row are JSON in its metadata, under `keys`.

    Raises:
        LiquidError: The disk refused.
    """
    path = out / "failed" / f"step-{step:08d}-rank-{rank:05d}.safetensors"
    tensors = {
        name: getattr(batch, name).cpu().contiguous()
        for name in ("input_ids", "position_ids", "target", "task_ids")
    }
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {"keys": json.dumps([row.keys for row in rows])})
    return path
