"""Exporting a checkpoint to the format of another engine.

The weights must be complete, and the engine must support the architecture and the tokenizer. The
folder is written completely or not at all. Both formats keep the processor and the image tokenizer,
which convert the token ids of any engine to images. The formats differ in the language model:

* vllm: a stock transformers folder with safetensors. `generation_config.json` lists the tokens that
  end a text and the sampling of text, because vLLM reads its defaults there. A tokenizer without a
  chat template gets the one that matches its turn tokens.
* gguf: one file, `model.gguf` (`gguf_file`), for llama.cpp and engines based on it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.export.gguf_file import TYPES, write_gguf
from liquidmm.files import atomic_folder
from liquidmm.generate.detokenize import stop_tokens
from liquidmm.generate.sampling import DEFAULT_CHAT_SAMPLING
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

FORMATS = ("vllm", "gguf")

GGUF_FILE = "model.gguf"

_DTYPES = [name for name in DTYPES if name != "auto"]

VLLM_MODELS = (
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
"""Models that vLLM implements itself and that its transformers backend cannot run."""


def export_checkpoint(
    checkpoint: str | Path, out: str | Path, target: str, dtype: str | None = None
) -> Path:
    """Write a checkpoint in the format of another engine.

    Args:
        checkpoint: A checkpoint folder, or owner/name on the Hugging Face hub.
        out: Folder to write; must be missing or empty.
        target: One of `FORMATS`.
        dtype: dtype of the weights: float32, bfloat16, float16, or for gguf also q8_0; None keeps
            the checkpoint's.

    Returns:
        ``out``.

    Raises:
        CheckpointError: The checkpoint is broken, or the engine does not support it.
        ConfigError: The format or the dtype is unknown.
        LiquidError: ``out`` exists already or cannot be written.
        MissingExtraError: The package `gguf` is not installed.
    """
    if target not in FORMATS:
        raise ConfigError(
            f"--format: expected {' or '.join(FORMATS)}, got '{target}'.{suggest(target, FORMATS)}"
        )
    dtypes = list(TYPES) if target == "gguf" else _DTYPES
    if dtype is not None and dtype not in dtypes:
        raise ConfigError(
            f"--dtype: expected one of {', '.join(dtypes)} for {target}, got '{dtype}'."
            f"{suggest(dtype, dtypes)}"
        )
    out = Path(out)
    check_output_folder(out)
    loaded, own = _load(local_folder(checkpoint))
    with atomic_folder(out) as temporary:
        if target == "vllm":
            _write_vllm(loaded, temporary, dtype or own)
        else:
            _write_gguf(loaded, temporary, dtype or own)
    return out


def _load(folder: Path) -> tuple[Checkpoint, str]:
    """Load a checkpoint in its own dtype, and return both."""
    processor, images = load_parts(folder, torch.device("cpu"))
    check_decoder(folder)
    config = read_config(folder)
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    if own not in _DTYPES:
        raise CheckpointError(
            f"{folder}: unsupported dtype {own!r} in config.json. "
            f"Save the checkpoint as one of: {', '.join(_DTYPES)}."
        )
    model = load_language_model(folder, getattr(torch, own))
    return Checkpoint(model=model, processor=processor, image_tokenizer=images), own


def _write_vllm(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    model, sequences = checkpoint.model, checkpoint.processor.sequences
    kind: Any = type(model)
    name = kind.__name__
    if name not in VLLM_MODELS and not kind.is_backend_compatible():
        raise CheckpointError(
            f"model: vLLM does not support {name}, not even through transformers. "
            "Use it with liquidmm."
        )
    # Without a template the model cannot chat, but it still generates and describes images.
    with contextlib.suppress(CheckpointError):
        checkpoint.processor.tokenizer.chat_template = sequences.chat_template
    generation: Any = model.generation_config
    generation._from_model_config = False
    generation.eos_token_id = sorted(stop_tokens(model, sequences))
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
