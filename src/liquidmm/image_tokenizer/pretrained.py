"""Published VQGAN weights, read by their own names.

Contract: the only module of the package that opens a pickle, always with ``weights_only=True``.
Everything comes out as a ``VQGAN``; names or shapes that do not fit are a ``CheckpointError``.
"""

import functools
import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from liquidmm.config import from_dict
from liquidmm.errors import CheckpointError
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.runtime import get_logger

CHAMELEON_LICENSE = (
    "These look like Chameleon's image tokenizer weights: Chameleon Research License, "
    "non-commercial research only. See https://ai.meta.com/resources/models-and-libraries/"
    "chameleon-license/"
)
_CHAMELEON_PREFIXES = ("model.vqmodel.", "vqmodel.")
_OWN_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


@functools.cache
def show_license() -> None:
    """Log the licence of the published weights, once in a process."""
    get_logger(__name__).warning(CHAMELEON_LICENSE)


def load_state(model: VQGAN, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights by name into a model.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    if missing or extra:
        what = f"misses {missing[0]}" if missing else f"has the unknown tensor {extra[0]}"
        raise CheckpointError(
            f"{where}: {what} ({len(missing)} missing, {len(extra)} unknown). "
            "Is the configuration beside it the right one?"
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(state[name].shape)}, the configuration says "
                f"{tuple(value.shape)}. Is it the right one?"
            )
    model.load_state_dict({name: value.float() for name, value in state.items()})


def read_taming(checkpoint: Path) -> VQGAN:
    """Read a ``vqgan.ckpt`` and the ``.yaml`` of the same name, or ``vqgan.yaml``, beside it.

    Args:
        checkpoint: A torch pickle: the state dict, alone or under "state_dict" (Lightning). Tensors
            of the training loss (``loss.*``) are left out.

    Raises:
        CheckpointError: A file is missing or broken, or the two do not fit.
    """
    config = _taming_config(_yaml_beside(checkpoint))
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{checkpoint}: cannot be read as plain weights ({first}). Download it again, or save "
            "its state_dict alone."
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and name.startswith(_OWN_PREFIXES)
    }
    if not state:
        raise CheckpointError(f"{checkpoint}: holds no VQGAN weights. Give a taming checkpoint.")
    model = VQGAN(config)
    load_state(model, state, checkpoint)
    if config.codebook_size == 8192 and config.code_dim == 256:
        show_license()
    return model


def _yaml_beside(checkpoint: Path) -> Path:
    for candidate in (checkpoint.with_suffix(".yaml"), checkpoint.parent / "vqgan.yaml"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{checkpoint}: no {checkpoint.stem}.yaml beside it. Put the checkpoint's vqgan.yaml there."
    )


def _taming_config(file: Path) -> VQGANConfig:
    yaml: Any = importlib.import_module("yaml")  # comes with transformers
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        params = content["model"]["params"]
        shape = params["ddconfig"]
        if shape.get("double_z", False):
            raise CheckpointError(f"{file}: double_z is for KL autoencoders. Give a VQGAN.")
        fields = {
            "resolution": shape["resolution"],
            "in_channels": shape["in_channels"],
            "base_channels": shape["ch"],
            "channel_multipliers": tuple(shape["ch_mult"]),
            "num_res_blocks": shape["num_res_blocks"],
            "attention_resolutions": tuple(shape.get("attn_resolutions", ())),
            "latent_channels": shape["z_channels"],
            "code_dim": params["embed_dim"],
            "codebook_size": params["n_embed"],
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: no taming VQGAN configuration ({type(error).__name__}: {error}). "
            "It needs model.params with embed_dim, n_embed and ddconfig."
        ) from None
    return from_dict(VQGANConfig, fields, str(file))


def is_chameleon(folder: Path) -> bool:
    """Tell whether a folder is a Chameleon checkpoint of transformers."""
    return _config(folder).get("model_type") in ("chameleon", "chameleon_vqgan")


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_chameleon(path: Path) -> VQGAN:
    """Read the image tokenizer out of a Chameleon checkpoint; transformers keeps no decoder.

    Args:
        path: The checkpoint folder, or the one ``.safetensors`` file with ``model.vqmodel.*``.

    Raises:
        CheckpointError: No such tensors, a broken file, or shapes that do not fit the config.
    """
    folder = path if path.is_dir() else path.parent
    state: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        state.update(_chameleon_tensors(file))
    if not state:
        raise CheckpointError(
            f"{path}: holds no {_CHAMELEON_PREFIXES[0]}* tensors. Give a Chameleon checkpoint, or "
            "a vqgan.ckpt with its vqgan.yaml."
        )
    config = _config(folder)
    model = VQGAN(_chameleon_config(config.get("vq_config", config), folder), decoder=False)
    load_state(model, state, path)
    show_license()
    return model


def _chameleon_tensors(file: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                for prefix in (*_CHAMELEON_PREFIXES, ""):
                    if name.startswith(tuple(prefix + own for own in _OWN_PREFIXES)):
                        found[name.removeprefix(prefix)] = opened.get_tensor(name)
                        break
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}). Download it again.") from None
    return found


def _chameleon_config(found: Mapping[str, Any], folder: Path) -> VQGANConfig:
    # transformers writes only what it has; what is absent is Chameleon's own value.
    names = {
        "resolution": "resolution",
        "in_channels": "in_channels",
        "base_channels": "base_channels",
        "channel_multiplier": "channel_multipliers",
        "num_res_blocks": "num_res_blocks",
        "attn_resolutions": "attention_resolutions",
        "latent_channels": "latent_channels",
        "embed_dim": "code_dim",
        "num_embeddings": "codebook_size",
    }
    fields = {
        ours: found[theirs] for theirs, ours in names.items() if found.get(theirs) is not None
    }
    return from_dict(VQGANConfig, fields, f"{folder / 'config.json'}: vq_config")


def read_tensors(file: Path, needed_for: str) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors`` file or a torch pickle.

    Args:
        file: The file.
        needed_for: What they are and where they come from, for the error message.

    Raises:
        CheckpointError: The file is missing, broken or holds no named tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file. It should hold {needed_for}.")
    try:
        content: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file}: cannot be read as plain weights ({first}). It should hold {needed_for}."
        ) from None
    tensors = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{file}: holds no named tensors. It should hold {needed_for}.")
    return tensors
