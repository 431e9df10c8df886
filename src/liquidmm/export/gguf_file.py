"""A checkpoint as a single GGUF file, the format of llama.cpp.

The file contains the language model with the complete embedding table, the tokenizer with a token
for each embedding row, the chat template, and the vocabulary's layout under `liquid.*`, which
llama.cpp ignores. In the checkpoint's own dtype or float32, the weights are bit for bit those of
the checkpoint (except for rounding in Gemma's norms, which are stored plus 1). The file does not
include the image tokenizer.
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
"""dtypes of the weights -> their names in the format."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
_BLOCK = 32
"""Number of weights that share a scale in q8_0."""


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: str) -> None:
    """Write a checkpoint's language model and tokenizer; an existing file is replaced.

    ``dtype``, one of `TYPES`, is the dtype of matrices; norms and biases are always float32.

    Raises:
        CheckpointError: llama.cpp does not support the model, or a weight does not fit the dtype.
        ConfigError: The dtype is unknown.
        MissingExtraError: The package `gguf` is not installed.
    """
    if dtype not in TYPES:
        raise ConfigError(
            f"dtype: expected one of {', '.join(TYPES)}, got '{dtype}'.{suggest(dtype, TYPES)}"
        )
    gguf = require_extra("gguf", "gguf")
    model, processor = ModelFile(checkpoint.model), checkpoint.processor
    tokens = token_table(processor.tokenizer, checkpoint.vocabulary, model.config.vocab_size)
    writer = gguf.GGUFWriter(path, model.family.architecture)
    try:
        name = f"MOSTLY_{TYPES[dtype]}" if dtype != "float32" else "ALL_F32"
        writer.add_file_type(gguf.LlamaFileType[name])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        model.write_metadata(writer)
        _write_tokens(writer, tokens, processor)
        _write_weights(gguf, writer, model, dtype)
    finally:
        writer.close()


def _write_weights(gguf: Any, writer: Any, model: ModelFile, dtype: str) -> None:
    """Write the header and the shapes, then one weight after the other."""
    kinds = {}
    for name, shape in model.shapes():
        kinds[name] = kind = gguf.GGMLQuantizationType[_type_of(name, shape, dtype)]
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in model.weights():
        data = weight.numpy()
        if kinds[name] == gguf.GGMLQuantizationType.F16 and np.abs(data).max() > FLOAT16_MAX:
            raise CheckpointError(
                f"{name}: a weight is above {FLOAT16_MAX:.0f}, the maximum of float16. "
                "Choose --dtype bfloat16."
            )
        writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(data), kinds[name]))


def _type_of(name: str, shape: Sequence[int], dtype: str) -> str:
    if len(shape) < 2:
        return TYPES["float32"]
    if dtype == "q8_0" and shape[-1] % _BLOCK:
        raise CheckpointError(
            f"{name}: q8_0 needs a multiple of {_BLOCK} weights per row, got {shape[-1]}. "
            "Choose --dtype bfloat16."
        )
    return TYPES[dtype]


def _write_tokens(writer: Any, table: TokenTable, processor: LiquidProcessor) -> None:
    """Add the tokenizer, the chat template and the layout."""
    tokenizer, sequences = processor.tokenizer, processor.sequences
    if sequences.eos is None:
        raise CheckpointError(
            "tokenizer: has no eos token, so llama.cpp would use another one. Set it in "
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
    # Without a template the model cannot chat, but it still generates and describes images.
    with contextlib.suppress(CheckpointError):
        writer.add_chat_template(sequences.chat_template)
        named["eot"] = sequences.end_of_turn
    for name, index in named.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    for field, value in processor.vocabulary.to_dict().items():
        writer.add_uint32(f"liquid.{field}", value)
