"""Where a run's figures are shown besides its own file: TensorBoard, Weights & Biases, Trackio.

Contract: a tracker takes the same figures as metrics.jsonl, which stays the one that counts: a
resumed run cuts that file at its save and goes on, and TensorBoard hides what lies after it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from liquidmm.runtime import require_extra


class Tracker(Protocol):
    """Shows figures."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files for `tensorboard --logdir OUT/tensorboard`."""

    def __init__(self, out: Path, step: int) -> None:
        """Open a new event file; what older ones hold after ``step`` is hidden."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Hosted:
    """A service with the calls of Weights & Biases, which Trackio shares.

    What it has to say goes to stderr: stdout is for the result of the run.
    """

    def __init__(self, name: str, out: Path, run: Mapping[str, Any]) -> None:
        """Begin or go on with the run of that folder.

        Args:
            name: "wandb" or "trackio", a module and the extra that brings it.
            out: Folder of the run; its name is the run's.
            run: The resolved run.

        Raises:
            MissingExtraError: The package isn't installed.
        """
        self._module: Any = require_extra(name, name)
        project = out.resolve().parent.name or "liquid"
        with contextlib.redirect_stdout(sys.stderr):
            self._module.init(project=project, name=out.name, config=dict(run), resume="allow")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is left."""
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


def open_trackers(
    names: Sequence[str], out: Path, step: int, run: Mapping[str, Any]
) -> list[Tracker]:
    """Open TensorBoard and the trackers that the run asks for.

    Args:
        names: "wandb", "trackio".
        out: Folder of the run.
        step: Steps done before.
        run: The resolved run.

    Returns:
        The trackers.

    Raises:
        MissingExtraError: A package isn't installed.
    """
    hosted = [Hosted(name, out, run) for name in names]
    return [TensorBoard(out, step), *hosted]
