"""Training checkpoints of an image tokenizer.

A checkpoint is one safetensors file that is replaced atomically. It contains every tensor of the
training state under "<part>.<name>", and the step in its metadata. ``run.json`` next to it contains
the resolved run file, which a resumed run must match.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.files import atomic_file
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig

# These keys do not affect the weights.
_CHANGEABLE = ("log_every", "eval_every", "sample_every", "save_every", "threads", "out")


def write_run(run: TrainTokenizerConfig) -> None:
    """Write the resolved run file to ``out``/run.json."""
    with atomic_file(run.out / "run.json") as file:
        file.write_text(json.dumps(to_dict(run), indent=2) + "\n", "utf-8")


def check_run(run: TrainTokenizerConfig) -> None:
    """Check that a run can resume the one in ``out``.

    Raises:
        ConfigError: A setting that affects the weights differs.
    """
    file = run.out / "run.json"
    try:
        found = json.loads(file.read_text("utf-8"))
        # Read as a run file so that settings that are newer than the file have their defaults.
        before = to_dict(from_dict(TrainTokenizerConfig, found, str(file)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be resumed ({error}). Start a new run.") from None
    old, new = _flatten(before), _flatten(to_dict(run))
    for key in sorted(old.keys() | new.keys()):
        if key.split(".")[-1] not in _CHANGEABLE and old.get(key) != new.get(key):
            raise ConfigError(
                f"{key}: expected {old.get(key)} as in the interrupted run, got {new.get(key)}. "
                "Change it back to resume, or start in another folder."
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        out |= _flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return out


def save(file: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the state of all parts: modules, optimizers and other objects with a ``state_dict``."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous().clone()
        for part, owner in parts.items()
        for name, value in _state_of(owner).items()
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def load(file: Path, parts: Mapping[str, Any]) -> int:
    """Restore the state of all parts and return the step.

    Raises:
        CheckpointError: The file is broken or has other parts.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            step = int((opened.metadata() or {})["step"])
            for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                tensors[name] = opened.get_tensor(name)
        for part, owner in parts.items():
            prefix = f"{part}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            _restore(owner, own)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be resumed ({error}). Start a new run.") from None
    return step


def _state_of(owner: Any) -> dict[str, Tensor]:
    if not isinstance(owner, torch.optim.Optimizer):
        state: dict[str, Tensor] = owner.state_dict()
        return state
    return {
        f"{index}.{name}": value
        for index, values in owner.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore(owner: Any, tensors: dict[str, Tensor]) -> None:
    if not isinstance(owner, torch.optim.Optimizer):
        owner.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    owner.load_state_dict({**owner.state_dict(), "state": state})


def truncate_metrics(file: Path, step: int) -> None:
    """Remove the lines of metrics.jsonl that a resumed run will write again."""
    if not file.exists():
        return
    kept = [
        line
        for line in file.read_text("utf-8").splitlines()
        if line.endswith("}") and json.loads(line)["step"] <= step
    ]
    with atomic_file(file) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
