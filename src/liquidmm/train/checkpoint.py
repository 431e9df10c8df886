"""Checkpoints of a run in progress, and the final model.

    OUT/checkpoints/step-00000500/  shard-*.safetensors   trainable parameters and optimizer state
                                    state.json            step, data position and settings
    OUT/final/                                            a Liquid checkpoint with a model card

A checkpoint is never visible half-written: the ranks write in the background to a temporary folder,
and the first rank renames it when all of them are done. Only then are older checkpoints removed. A
resumed run equals an uninterrupted one bit for bit; with a different number of ranks, the results
are equal up to the order of additions.
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
from liquidmm.files import atomic_folder, write_text
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.distributed import Distributed
from liquidmm.train.muon import Muon

_NAME = re.compile(r"step-(\d{8})")
_OLD_FOLDER = "saves"

Named = Mapping[str, nn.Parameter]
"""Trainable parameters by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """Everything a run needs to resume besides tensors."""

    step: int
    """Number of steps done."""
    data: dict[str, Any]
    """State of the token stream, JSON-compatible."""
    config: dict[str, Any]
    """The resolved run file."""
    loss_spikes: dict[str, float]
    """State of the loss spike detector."""


class Checkpointer:
    """Writes the checkpoints of a run in the background, one at a time."""

    def __init__(self, out: Path, keep: int, world: Distributed) -> None:
        """Write to ``out``, the folder of the run, and keep the last ``keep`` (at least 1)."""
        self._folder = out / "checkpoints"
        self._keep = keep
        self._world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[Future[Any], Path] | None = None
        # A single rank deliberately has no process group.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def start(
        self, named: Named, optimizers: Sequence[torch.optim.Optimizer], state: TrainState
    ) -> Path:
        """Start writing a checkpoint and return the folder that will appear.

        The tensors are copied before this returns; only the first rank's ``state`` is written.

        Raises:
            LiquidError: This or the previous checkpoint cannot be written.
        """
        self.finish()
        folder = self._folder / f"step-{state.step:08d}"
        partial = folder.with_name(f".{folder.name}")
        with self._world.raise_together():
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
                with _disk_errors(folder):
                    partial.mkdir(parents=True)
                write_text(partial / "state.json", json.dumps(asdict(state)))
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        future = async_save(
            _tensors(named, optimizers),
            storage_writer=writer,
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._pending = cast("Future[Any]", future), folder
        return folder

    def poll(self) -> None:
        """Call `finish` if the checkpoint is written; all ranks call this after every step."""
        if self._pending is not None and not self._world.any(not self._pending[0].done()):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in progress, if any, and publish it.

        Raises:
            LiquidError: The checkpoint cannot be written; the previous one remains.
        """
        if self._pending is None:
            return
        (future, folder), self._pending = self._pending, None
        partial = folder.with_name(f".{folder.name}")
        with self._world.raise_together():
            try:
                with _disk_errors(folder):
                    future.result()
                    if self._world.is_main:
                        shutil.rmtree(folder, ignore_errors=True)  # of a run with more steps
                        partial.rename(folder)
            except LiquidError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        if self._world.is_main:
            for old in _checkpoints(self._folder)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(out: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None; the folder ``out`` does not have to exist.

    Raises:
        CheckpointError: The folder contains only checkpoints of an earlier version of liquidmm.
    """
    found = _checkpoints(out / "checkpoints")
    if not found and _checkpoints(out / _OLD_FOLDER):
        raise CheckpointError(
            f"{out / _OLD_FOLDER}: checkpoints of an earlier version cannot be resumed. Remove "
            "that folder, or choose another out."
        )
    return found[-1] if found else None


def read_state(folder: Path) -> TrainState:
    """Read the state of a checkpoint, or raise a `CheckpointError` if the folder is not one."""
    try:
        return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'}: cannot be read ({error}). Remove this checkpoint to resume "
            "from the previous one."
        ) from error


def restore(
    folder: Path, named: Named, optimizers: Sequence[torch.optim.Optimizer], world: Distributed
) -> None:
    """Load parameters and the state of new optimizers in place; each rank reads its own shards.

    Raises:
        CheckpointError: The checkpoint is damaged or belongs to another model or optimizer.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = _empty_state(parameter, optimizer)
    wanted = _tensors(named, optimizers)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        missing = sorted(wanted.keys() - found.keys())
        if not missing:
            load(wanted, storage_reader=reader, no_dist=world.size == 1)
    except (OSError, SafetensorError, CheckpointException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder}: cannot be read ({reason}). Remove this checkpoint to resume from the "
            "previous one, or use the saved run's model and optimizer."
        ) from error
    if missing:
        raise CheckpointError(
            f"{folder}: does not contain {missing[0]}. Resume with the saved run's model "
            "and optim.optimizer."
        )


def write_final(out: Path, checkpoint: Checkpoint, card: str, dtype: str) -> Path:
    """Write the trained model and its ``card`` to OUT/final, replacing an existing one.

    Raises:
        LiquidError: The folder cannot be written.
    """
    folder = out / "final"
    with atomic_folder(folder, overwrite=True) as temporary:
        checkpoint.save(temporary, dtype=dtype)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder


def model_card(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return the README.md of a trained checkpoint from its run file and last metrics."""
    data, loop, optim = config["data"], config["train"], config["optim"]
    tokens = loop["steps"] * loop["global_batch_size"] * data["seq_len"]
    settings = {
        "base": f"`{config['checkpoint']}`",
        "steps": loop["steps"],
        "global batch size": f"{loop['global_batch_size']} sequences of {data['seq_len']} tokens",
        "tokens": f"{tokens / 1e6:.1f}M",
        "optimizer": f"{optim['optimizer']}, weight decay {optim['weight_decay']}",
        "learning rate": f"{optim['lr']}, {optim['schedule']}, {optim['warmup_steps']} warmup "
        "steps",
        "gradient clipping": optim["grad_clip"],
        "max-z loss": optim["max_z_loss"],
        "precision": loop["precision"],
        "seed": config["seed"],
    }
    lines = [
        "# A Liquid model",
        "",
        "A stock causal language model that reads and writes text and images: its vocabulary also",
        "contains the codes of an image tokenizer. Load it with `liquidmm.load(folder)`, or with",
        "`AutoModelForCausalLM.from_pretrained(folder)` for text alone.",
        "",
        "## Training",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        "| shards | task | weight |",
        "|---|---|---|",
        *(f"| `{s['path']}` | {s['task']} | {s['weight']} |" for s in data["sources"]),
        "",
        "## Metrics",
        "",
        "Loss is in nats per token; accuracy is that of the most likely token.",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in metrics.items()),
        "",
    ]
    return "\n".join(lines)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _tensors(named: Named, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint by name."""
    states = {each: state for optimizer in optimizers for each, state in optimizer.state.items()}
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in states.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value.detach()
    return tensors


def _empty_state(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Allocate what an optimizer of `build_optimizers` keeps for a parameter."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    return {
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
        # Fused AdamW requires it on the parameter's device.
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
    }


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn disk errors into one-line messages."""
    try:
        yield
    except (OSError, CheckpointException, SafetensorError) as error:
        causes = [error, *getattr(error, "failures", {}).values()]
        reason = next((text for text in map(_os_error, causes) if text), "")
        if not reason:
            raise
        raise LiquidError(
            f"{folder}: cannot be written ({reason}). Free some space and run the same command "
            "again; it resumes from the previous checkpoint."
        ) from error


def _os_error(cause: Any) -> str:
    error = cause[0] if isinstance(cause, tuple) else cause
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    return text if isinstance(error, SafetensorError) and "os error" in text.lower() else ""
