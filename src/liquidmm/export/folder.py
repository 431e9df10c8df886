"""`export`: a checkpoint in the form that another engine loads.

Contract: what is written was checked: the weights are all there, and the engine knows the
architecture and the tokenizer. The folder appears whole or not at all. In both forms it keeps the
processor and the image tokenizer, with which the ids of any engine become pictures; it differs in
where the language model stands:

* vllm: safetensors, a stock transformers folder. `generation_config.json` names every id that ends
  a text and how text is sampled, since vLLM takes its defaults there; a tokenizer without a chat
  template gets the one that belongs to its turn markers.
* gguf: one file, `model.gguf` (`gguf_file`), for llama.cpp and what is built on it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.export.gguf_file import TYPES, write_gguf
from liquidmm.files import atomic_folder
from liquidmm.generate.jobs import DEFAULT_CHAT_SAMPLING
from liquidmm.generate.words import stop_ids
from liquidmm.model.checkpoint import (
    IMAGE_TOKENIZER_FOLDER,
    Checkpoint,
    load_language_model,
    load_parts,
    local_folder,
)
from liquidmm.model.expand import check_decoder, check_output_folder
from liquidmm.model.processor import read_config
from liquidmm.runtime import DTYPES

TARGETS = ("vllm", "gguf")
"""The forms there are."""

GGUF_FILE = "model.gguf"

_VLLM_OWN = (
    "BloomForCausalLM",
    "FalconForCausalLM",
    "FalconH1ForCausalLM",
    "GPTJForCausalLM",
    "JambaForCausalLM",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "StableLmForCausalLM",
)
"""Decoders that vLLM has written itself and could not run through transformers."""


def export(checkpoint: str | Path, out: str | Path, to: str, dtype: str | None = None) -> Path:
    """Write a checkpoint in the form that another engine loads.

    Args:
        checkpoint: A checkpoint folder, or owner/name on the Hugging Face hub.
        out: Folder to write; must be missing or empty.
        to: One of `TARGETS`.
        dtype: Number type of the weights: float32, bfloat16, float16, or for gguf also q8_0; None
            keeps the checkpoint's.

    Returns:
        ``out``.

    Raises:
        CheckpointError: The checkpoint is broken, or the engine can't take it.
        ConfigError: The form or the type is unknown.
        LiquidError: ``out`` exists already or can't be written.
        MissingExtraError: The package `gguf` isn't installed.
    """
    if to not in TARGETS:
        raise ConfigError(f"--to: '{to}' is unknown.{suggest(to, TARGETS)}")
    types = [name for name in (TYPES if to == "gguf" else DTYPES) if name != "auto"]
    if dtype is not None and dtype not in types:
        raise ConfigError(f"--dtype: '{dtype}' is unknown to {to}.{suggest(dtype, types)}")
    out = Path(out)
    check_output_folder(out)
    loaded, own = _load(local_folder(checkpoint))
    with atomic_folder(out) as temporary:
        if to == "vllm":
            _write_vllm(loaded, temporary, dtype or own)
        else:
            _write_gguf(loaded, temporary, dtype or own)
    return out


def _load(folder: Path) -> tuple[Checkpoint, str]:
    """Load a checkpoint in its own number type, and name that type."""
    processor, images = load_parts(folder, torch.device("cpu"))
    check_decoder(folder)
    config = read_config(folder)
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    if own not in DTYPES:
        known = [name for name in DTYPES if name != "auto"]
        raise CheckpointError(
            f"{folder}: config.json names the dtype {own!r}. Save it as one of: {', '.join(known)}."
        )
    model = load_language_model(folder, getattr(torch, own))
    return Checkpoint(model=model, processor=processor, image_tokenizer=images), own


def _write_vllm(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    model, sequences = checkpoint.model, checkpoint.processor.sequences
    kind: Any = type(model)
    name = kind.__name__
    if name not in _VLLM_OWN and not kind.is_backend_compatible():
        raise CheckpointError(
            f"model: vLLM runs no {name}, neither its own nor that of transformers. "
            "Use it with liquidmm."
        )
    # Without a template it can't chat, but it still draws and describes.
    with contextlib.suppress(CheckpointError):
        checkpoint.processor.tokenizer.chat_template = sequences.chat_template
    generation: Any = model.generation_config
    generation._from_model_config = False
    generation.eos_token_id = sorted(stop_ids(model, sequences))
    if not generation.do_sample:
        generation.update(
            do_sample=True,
            temperature=DEFAULT_CHAT_SAMPLING.temperature,
            top_k=DEFAULT_CHAT_SAMPLING.top_k,
            top_p=DEFAULT_CHAT_SAMPLING.top_p,
        )
    checkpoint.save(folder, dtype)


def _write_gguf(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    write_gguf(checkpoint, folder / GGUF_FILE, dtype)
    checkpoint.model.config.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    if checkpoint.image_tokenizer is not None:
        checkpoint.image_tokenizer.save(folder / IMAGE_TOKENIZER_FOLDER)
