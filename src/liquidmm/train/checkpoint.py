"""Saves of a running training, and the folder that comes out at the end.

    OUT/run.json              the resolved run
    OUT/saves/step-00000500/  model/ (a checkpoint, float32), optimizer.safetensors, state.json
    OUT/final/                the trained checkpoint with its README.md

Contract: a save appears whole or not at all, and a run that goes on from one is the same, bit by
bit, as one that never stopped. Safetensors and JSON only, no pickles. Older saves are removed only
after the newer one stands.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liquidmm.errors import CheckpointError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.runtime import atomic_folder

_NAME = re.compile(r"step-(\d{8})")
_RNG = "rng/"
# What the two optimizers of `build_optimizers` remember about a parameter.
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_MUON = {"momentum_buffer"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    """Steps done."""
    data: dict[str, Any]
    """State of the data stream, JSON-able."""
    run: dict[str, Any]
    """The resolved run."""


def save(
    out: Path,
    checkpoint: Checkpoint,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    keep: int,
) -> Path:
    """Write a save and remove the oldest ones.

    Args:
        out: Folder of the run.
        checkpoint: The model with its processor; its weights are written as they are.
        optimizers: Its optimizers.
        progress: Step, data position and run.
        keep: Saves to leave, at least 1.

    Returns:
        The folder of the new save.

    Raises:
        LiquidError: The disk refused.
    """
    folder = out / "saves" / f"step-{progress.step:08d}"
    with atomic_folder(folder, overwrite=True) as temporary:
        checkpoint.save(temporary / "model")
        tensors = dict(_flatten(checkpoint.model, optimizers))
        save_file(tensors | _random_states(), temporary / "optimizer.safetensors")
        state = {"step": progress.step, "data": progress.data, "run": progress.run}
        (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    for old in _saves(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def latest(out: Path) -> Path | None:
    """Find the newest save of a run.

    Args:
        out: Folder of the run; it needn't exist.

    Returns:
        Its folder, or None.
    """
    saves = _saves(out)
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
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Progress(step=state["step"], data=state["data"], run=state["run"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'}: can't be read ({error}). Remove this save and resume from "
            "the one before it."
        ) from error


def restore(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Put the optimizers and torch's random state back as they were.

    Args:
        folder: A save; ``model`` was loaded from its ``model`` folder.
        model: The model.
        optimizers: Fresh optimizers of that model.

    Raises:
        CheckpointError: The save is broken or belongs to another model or optimizer.
    """
    path = folder / "optimizer.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: can't be read ({error}). Remove this save and resume from the one before it."
        ) from error
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        states.setdefault(name, {})[kind] = value
    for name, parameter, optimizer in _optimized(model, optimizers):
        state = states.get(name, {})
        if not state or any(v.dim() and v.shape != parameter.shape for v in state.values()):
            raise CheckpointError(
                f"{path}: holds no state for {name} {tuple(parameter.shape)}. "
                "It belongs to another model."
            )
        wanted = _MUON if isinstance(optimizer, torch.optim.Muon) else _ADAMW
        if state.keys() != wanted:
            raise CheckpointError(
                f"{path}: {name} has {', '.join(sorted(state))}, its optimizer needs "
                f"{', '.join(sorted(wanted))}. Resume with the optim.matrices of the saved run."
            )
        # Fused AdamW wants `step` on the parameter's device.
        optimizer.state[parameter] = {
            kind: value.to(parameter.device) for kind, value in state.items()
        }
    torch.set_rng_state(tensors[f"{_RNG}cpu"])
    if torch.cuda.is_available() and f"{_RNG}cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{_RNG}cuda"])


def _saves(out: Path) -> list[Path]:
    folder = out / "saves"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _optimized(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    owner = {
        id(parameter): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in owner:
            yield name, parameter, owner[id(parameter)]


def _flatten(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    for name, parameter, optimizer in _optimized(model, optimizers):
        for key, value in optimizer.state[parameter].items():
            yield f"{name}/{key}", value.detach().cpu().contiguous()


def _random_states() -> dict[str, Tensor]:
    states = {f"{_RNG}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"{_RNG}cuda"] = torch.cuda.get_rng_state()
    return states


def write_final(out: Path, checkpoint: Checkpoint, card: str, dtype: str) -> Path:
    """Write what the run was for: a plain checkpoint with a model card.

    Args:
        out: Folder of the run.
        checkpoint: The trained model.
        card: Text of README.md.
        dtype: Type of the weights on disk.

    Returns:
        OUT/final; one that was there is replaced.

    Raises:
        LiquidError: The disk refused.
    """
    folder = out / "final"
    with atomic_folder(folder, overwrite=True) as temporary:
        checkpoint.save(temporary, dtype=dtype)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder


def model_card(run: dict[str, Any], figures: dict[str, Any]) -> str:
    """Write the README.md of a trained checkpoint.

    Args:
        run: The resolved run.
        figures: The last validation, or the last training figures.

    Returns:
        Markdown.
    """
    data, loop, optim = run["data"], run["train"], run["optim"]
    sources = [f"| `{s['path']}` | {s['task']} | {s['weight']} |" for s in data["sources"]]
    results = [f"| {name} | {value} |" for name, value in figures.items()]
    seen = loop["steps"] * loop["batch_rows"] * data["length"]
    lines = [
        "# A Liquid model",
        "",
        "A stock causal language model whose vocabulary also holds the codes of an image",
        "tokenizer: it reads and writes text and pictures as one stream of ids. Load it with",
        "`liquidmm.load(folder)`; for text alone `AutoModelForCausalLM.from_pretrained` does.",
        "",
        "## Training",
        "",
        f"Started from `{run['checkpoint']}`: {loop['steps']} steps of {loop['batch_rows']} rows",
        f"of {data['length']} ids, {seen / 1e6:.1f}M ids in all. Matrices by {optim['matrices']},",
        f"the rest by adamw; learning rate {optim['lr']} ({optim['schedule']}, warm-up",
        f"{optim['warmup']}), weight decay {optim['weight_decay']}, clip {optim['clip']}, max-z",
        f"{optim['max_z']}, products in {loop['precision']}, seed {run['seed']}.",
        "",
        "| shards | task | weight |",
        "|---|---|---|",
        *sources,
        "",
        "## Figures at the end",
        "",
        "Loss in nats a label, accuracy of the most likely id.",
        "",
        "| figure | value |",
        "|---|---|",
        *results,
        "",
    ]
    return "\n".join(lines)
