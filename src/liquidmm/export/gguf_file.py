"""A checkpoint as one GGUF file, the format of llama.cpp.

Contract: the file holds the language model with all rows, the tokenizer with a token for each row,
the chat template, and the vocabulary's layout under `liquid.*`, which llama.cpp passes over. In the
checkpoint's own number type or float32 its weights are bit for bit the checkpoint's (Gemma's norms,
which are stored plus 1, up to rounding). The image tokenizer is no part of it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.export.gguf_model import ModelFile
from liquidmm.export.gguf_tokens import TokenTable, token_table
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.model.processor import LiquidProcessor
from liquidmm.runtime import require_extra

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""Number types of the weights -> their names in the format."""

HALF_LARGEST = float(np.finfo(np.float16).max)
_BLOCK = 32
"""Weights that share a scale in q8_0."""


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: str) -> None:
    """Write a checkpoint's language model and tokenizer.

    Args:
        checkpoint: The checkpoint.
        path: The file; an existing one is replaced.
        dtype: One of `TYPES`, the type of matrices; norms and biases are always float32.

    Raises:
        CheckpointError: llama.cpp can't compute the model, or a weight doesn't fit the type.
        ConfigError: The type is unknown.
        MissingExtraError: The package `gguf` isn't installed.
    """
    if dtype not in TYPES:
        raise ConfigError(f"dtype: '{dtype}' is unknown.{suggest(dtype, TYPES)}")
    gguf = require_extra("gguf", "gguf")
    model = ModelFile(checkpoint.model)
    processor = checkpoint.processor
    tokens = token_table(processor.tokenizer, checkpoint.vocabulary, model.config.vocab_size)
    writer = gguf.GGUFWriter(path, model.family.architecture)
    try:
        name = f"MOSTLY_{TYPES[dtype]}" if dtype != "float32" else "ALL_F32"
        writer.add_file_type(gguf.LlamaFileType[name])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        model.write_numbers(writer)
        _write_tokens(writer, tokens, processor)
        kinds = {}
        for name, shape in model.shapes():
            kinds[name] = kind = gguf.GGMLQuantizationType[_type_of(name, shape, dtype)]
            stored = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in model.weights():
            data = weight.numpy()
            if kinds[name] == gguf.GGMLQuantizationType.F16 and np.abs(data).max() > HALF_LARGEST:
                raise CheckpointError(
                    f"{name}: a weight is beyond {HALF_LARGEST:.0f}, the largest of float16. "
                    "Choose --dtype bfloat16."
                )
            writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(data), kinds[name]))
    finally:
        writer.close()


def _type_of(name: str, shape: Sequence[int], dtype: str) -> str:
    """Choose the type that a weight is stored in."""
    if len(shape) < 2:
        return TYPES["float32"]
    if dtype == "q8_0" and shape[-1] % _BLOCK:
        raise CheckpointError(
            f"{name}: rows of {shape[-1]} weights can't be cut into blocks of {_BLOCK} for q8_0. "
            "Choose --dtype bfloat16."
        )
    return TYPES[dtype]


def _write_tokens(writer: Any, table: TokenTable, processor: LiquidProcessor) -> None:
    """Add the tokenizer, the chat template and the layout."""
    tokenizer, sequences = processor.tokenizer, processor.sequences
    if sequences.eos is None:
        raise CheckpointError(
            "tokenizer: has no eos token, and llama.cpp would take another for it. Name one in "
            "tokenizer_config.json."
        )
    writer.add_tokenizer_model(table.model)
    writer.add_tokenizer_pre(table.pre)
    writer.add_token_list(table.tokens)
    writer.add_token_types(table.types)
    if table.merges is not None:
        writer.add_token_merges(table.merges)
    if table.scores is not None:
        writer.add_token_scores(table.scores)
        writer.add_add_space_prefix(table.space_prefix)
    writer.add_add_bos_token(sequences.bos is not None)
    named = {
        "bos": sequences.bos,
        "eos": sequences.eos,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    # A tokenizer without a chat template can't chat, but its model still draws and describes.
    with contextlib.suppress(CheckpointError):
        writer.add_chat_template(sequences.chat_template)
        named["eot"] = sequences.end_of_turn
    for name, index in named.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    for field, value in processor.vocabulary.to_dict().items():
        writer.add_uint32(f"liquid.{field}", value)
