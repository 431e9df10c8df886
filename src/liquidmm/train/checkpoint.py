"""Saves of a running training, from which it goes on.

    OUT/checkpoints/step-00000500/  shard-*.safetensors   what is learnt and the optimizer's memory of it
                              state.json            where the run stands

Contract: a save appears whole or not at all: the ranks write their parts into a folder of another
name, in the background, and the first rank renames it when all of them are on disk. Older saves
are removed only after that. A run that goes on from a save is the same, bit by bit, as one that
never stopped; on another number of ranks it is so up to the order of additions. Safetensors and
JSON only, written and read by torch's distributed checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from liquidmm.errors import CheckpointError, LiquidError
from liquidmm.files import atomic_file
from liquidmm.train.distributed import Distributed

_NAME = re.compile(r"step-(\d{8})")
# What the two optimizers of `build_optimizers` remember about a parameter.
_ADAMW = ("exp_avg", "exp_avg_sq", "step")
_MUON = ("momentum_buffer",)

Named = Mapping[str, nn.Parameter]
"""Parameters that are learnt, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    """Steps done."""
    data: dict[str, Any]
    """State of the data stream, JSON-able."""
    run: dict[str, Any]
    """The resolved run."""
    watch: dict[str, float]
    """What the spike watch has learnt."""


class Checkpointer:
    """Writes the saves of a run, one at a time, while the training goes on."""

    def __init__(self, out: Path, keep: int, world: Distributed) -> None:
        """Set up; with several ranks the writing has a process group of its own.

        Args:
            out: Folder of the run.
            keep: Saves to leave, at least 1.
            world: The ranks.
        """
        self._saves = out / "checkpoints"
        self._keep = keep
        self._world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[Future[Any], Path] | None = None
        # With one rank there is none on purpose.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def start(
        self, named: Named, optimizers: Sequence[torch.optim.Optimizer], progress: Progress
    ) -> Path:
        """Begin a save; what it holds is copied before this returns.

        Args:
            named: What is learnt.
            optimizers: Its optimizers.
            progress: Step, data position and run; only the first rank's is written.

        Returns:
            The folder there will be.

        Raises:
            LiquidError: The disk refused, this time or for the save before.
        """
        self.finish()
        folder = self._saves / f"step-{progress.step:08d}"
        partial = self._saves / f".{folder.name}"
        with self._world.raise_together():
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
                with _disk(folder):
                    partial.mkdir(parents=True)
                with atomic_file(partial / "state.json") as path:
                    path.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        copied = {name: tensor.detach() for name, tensor in _tensors(named, optimizers)}
        future = async_save(
            copied,
            storage_writer=writer,
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._pending = cast("Future[Any]", future), folder
        return folder

    def poll(self) -> None:
        """Put a save in its place if it is written; all ranks call it after every step.

        Raises:
            LiquidError: The disk refused.
        """
        if self._pending is not None and not self._world.any(not self._pending[0].done()):
            self.finish()

    def finish(self) -> None:
        """Wait for the save that is being written, if there is one.

        Raises:
            LiquidError: The disk refused; the save before it stands.
        """
        if self._pending is None:
            return
        (future, folder), self._pending = self._pending, None
        partial = folder.with_name(f".{folder.name}")
        with self._world.raise_together():
            try:
                with _disk(folder):
                    future.result()
                    if self._world.is_main:
                        shutil.rmtree(folder, ignore_errors=True)  # of a run with more steps
                        partial.rename(folder)
            except LiquidError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        if self._world.is_main:
            for old in _saves(self._saves)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)


def latest(out: Path) -> Path | None:
    """Find the newest save of a run.

    Args:
        out: Folder of the run; it needn't exist.

    Returns:
        Its folder, or None.
    """
    saves = _saves(out / "checkpoints")
    return saves[-1] if saves else None


def read_progress(folder: Path) -> Progress:
    """Read where a save stands.

    Args:
        folder: A save.

    Returns:
        Step, data position and run.

    Raises:
        CheckpointError: The folder is no save.
    """
    try:
        return Progress(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'}: can't be read ({error}). Remove this save and resume from "
            "the one before it."
        ) from error


def restore(
    folder: Path, named: Named, optimizers: Sequence[torch.optim.Optimizer], world: Distributed
) -> None:
    """Put what is learnt and the optimizers back as they were; each rank reads its own part.

    Args:
        folder: A save.
        named: What is learnt, in memory but of any value.
        optimizers: Fresh optimizers of it.
        world: The ranks.

    Raises:
        CheckpointError: The save is broken or belongs to another model or optimizer.
    """
    for _, parameter, optimizer in _optimized(named, optimizers):
        optimizer.state[parameter] = _empty_state(parameter, optimizer)
    wanted = {name: tensor.detach() for name, tensor in _tensors(named, optimizers)}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        missing = sorted(wanted.keys() - found.keys())
        if not missing:
            load(wanted, storage_reader=reader, no_dist=world.size == 1)
    except (OSError, SafetensorError, CheckpointException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder}: can't be read ({reason}). Remove this save and resume from the one before "
            "it, or with the model and optimizer of the saved run."
        ) from error
    if missing:
        raise CheckpointError(
            f"{folder}: holds no {missing[0]}. Resume with the model and the optim.optimizer of the "
            "saved run."
        )


def _saves(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _optimized(
    named: Named, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in named.items():
        yield name, parameter, owner[id(parameter)]


def _tensors(
    named: Named, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    """Everything of a save by its name there."""
    for name, parameter, optimizer in _optimized(named, optimizers):
        yield f"model/{name}", parameter
        for key, value in optimizer.state[parameter].items():
            yield f"optimizer/{name}/{key}", value


def _empty_state(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer will remember about a parameter, to be filled."""
    if isinstance(optimizer, torch.optim.Muon):
        return {key: torch.zeros_like(parameter) for key in _MUON}
    # Fused AdamW wants `step` on the parameter's device.
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {key: step if key == "step" else torch.zeros_like(parameter) for key in _ADAMW}


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals into one line."""
    try:
        yield
    except (OSError, CheckpointException, SafetensorError) as error:
        causes = [error, *getattr(error, "failures", {}).values()]
        reason = next((str(e) for e in map(_os_error, causes) if e), "")
        if not reason:
            raise
        raise LiquidError(
            f"{folder}: can't be written ({reason}). Make room and give the same command again; "
            "it goes on from the save before."
        ) from error


def _os_error(cause: Any) -> str:
    error = cause[0] if isinstance(cause, tuple) else cause
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    return text if isinstance(error, SafetensorError) and "os error" in text.lower() else ""
