"""Loading of published VQGAN weights by their original names.

This is the only module of the package that opens pickles, always with ``weights_only=True``. Names
or shapes that do not fit raise ``CheckpointError``.
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
from liquidmm.errors import CheckpointError, first_line
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.runtime import get_logger

CHAMELEON_LICENSE = (
    "These appear to be Chameleon's image tokenizer weights: Chameleon Research License, "
    "non-commercial research only. See https://ai.meta.com/resources/models-and-libraries/"
    "chameleon-license/"
)
_CHAMELEON_PREFIXES = ("model.vqmodel.", "vqmodel.")
_OWN_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_PICKLE_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError)
# Our field of VQGANConfig -> transformers' name.
_CHAMELEON_NAMES = {
    "resolution": "resolution",
    "in_channels": "in_channels",
    "base_channels": "base_channels",
    "channel_multipliers": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attention_resolutions": "attn_resolutions",
    "latent_channels": "latent_channels",
    "code_dim": "embed_dim",
    "codebook_size": "num_embeddings",
}


@functools.cache
def show_license() -> None:
    """Log the license of the published weights, once per process."""
    get_logger(__name__).warning(CHAMELEON_LICENSE)


def load_state(model: VQGAN, state: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model by name.

    Raises:
        CheckpointError: A tensor is missing or unknown, or has another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"unknown tensor {extra[0]}"
        raise CheckpointError(
            f"{where}: {what} ({len(missing)} missing, {len(extra)} unknown). "
            "Check that the configuration belongs to these weights."
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected shape {tuple(value.shape)}, as configured, got "
                f"{tuple(state[name].shape)}. Check that the two belong together."
            )
    model.load_state_dict({name: value.float() for name, value in state.items()})


def read_taming(checkpoint: Path) -> VQGAN:
    """Read a ``vqgan.ckpt`` and the ``.yaml`` of the same name, or ``vqgan.yaml``, next to it.

    Args:
        checkpoint: A torch pickle: the state dict, alone or under "state_dict" (Lightning). Tensors
            of the training loss (``loss.*``) are ignored.

    Raises:
        CheckpointError: A file is missing or broken, or the two do not match.
    """
    candidates = (checkpoint.with_suffix(".yaml"), checkpoint.parent / "vqgan.yaml")
    yaml_file = next((file for file in candidates if file.is_file()), None)
    if yaml_file is None:
        raise CheckpointError(
            f"{checkpoint}: {checkpoint.stem}.yaml is missing. Copy the checkpoint's vqgan.yaml to "
            "this folder."
        )
    config = _read_taming_config(yaml_file)
    tensors = read_tensors(checkpoint, "a taming VQGAN checkpoint, or its state_dict alone")
    state = {name: value for name, value in tensors.items() if name.startswith(_OWN_PREFIXES)}
    if not state:
        raise CheckpointError(f"{checkpoint}: has no VQGAN weights. Use a taming checkpoint.")
    model = VQGAN(config)
    load_state(model, state, checkpoint)
    if config.codebook_size == 8192 and config.code_dim == 256:
        show_license()
    return model


def _read_taming_config(file: Path) -> VQGANConfig:
    yaml: Any = importlib.import_module("yaml")  # installed with transformers
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        params = content["model"]["params"]
        shape = params["ddconfig"]
        if shape.get("double_z", False):
            raise CheckpointError(f"{file}: double_z belongs to KL autoencoders. Use a VQGAN.")
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
            f"{file}: not a taming VQGAN configuration ({type(error).__name__}: {error}). "
            "It needs model.params with embed_dim, n_embed and ddconfig."
        ) from None
    return from_dict(VQGANConfig, fields, str(file))


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file is missing or contains something else."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_chameleon(path: Path) -> VQGAN:
    """Read the image tokenizer of a Chameleon checkpoint; transformers omits the decoder.

    Args:
        path: The checkpoint folder, or the single ``.safetensors`` file with ``model.vqmodel.*``.

    Raises:
        CheckpointError: There are no such tensors, a file is broken, or shapes do not fit.
    """
    state: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        state.update(_read_chameleon_tensors(file))
    if not state:
        raise CheckpointError(
            f"{path}: has no {_CHAMELEON_PREFIXES[0]}* tensors. Use a Chameleon checkpoint, or a "
            "vqgan.ckpt with its vqgan.yaml."
        )
    file = (path if path.is_dir() else path.parent) / "config.json"
    config = read_json_or_empty(file)
    found = config.get("vq_config", config)
    # transformers writes only some values; missing values are Chameleon's defaults.
    fields = {
        ours: found[theirs]
        for ours, theirs in _CHAMELEON_NAMES.items()
        if found.get(theirs) is not None
    }
    model = VQGAN(from_dict(VQGANConfig, fields, f"{file}: vq_config"), decoder=False)
    load_state(model, state, path)
    show_license()
    return model


def _read_chameleon_tensors(file: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                for prefix in (*_CHAMELEON_PREFIXES, ""):
                    if name.startswith(tuple(prefix + own for own in _OWN_PREFIXES)):
                        found[name.removeprefix(prefix)] = opened.get_tensor(name)
                        break
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}). Download it again.") from None
    return found


def read_tensors(file: Path, content: str) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors`` file or a torch pickle.

    Args:
        file: The file; tensors can be under "state_dict".
        content: What it should contain and where to get it, for the error message.

    Raises:
        CheckpointError: The file is missing, broken or contains no named tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file. Expected {content}.")
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (*_PICKLE_ERRORS, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as plain weights ({first_line(error)}). Expected {content}."
        ) from None
    found = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{file}: has no named tensors. Expected {content}.")
    return tensors
