"""Low-rank adapters (LoRA, QLoRA) and fully trained new embedding rows, through PEFT.

Training changes only the low-rank matrices and the rows of image tokens and special tokens in the
embedding table and in an untied head; every other weight stays bit-identical. (The reference
implementation adapts only the blocks, so it never trains its new rows.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError
from liquidmm.ranges import RangeChecked
from liquidmm.runtime import require_extra
from liquidmm.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(RangeChecked):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    RENAMED: ClassVar[Mapping[str, str]] = {"targets": "target_modules", "quantize": "load_in_4bit"}

    rank: Annotated[int, Ge(1)] = 16
    """Rank of each update."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input of an adapter during training."""
    target_modules: tuple[str, ...] = ()
    """Linear layers to adapt, such as "q_proj"; empty adapts every linear layer of the blocks."""
    load_in_4bit: bool = False
    """Keep the frozen weights of the blocks in 4 bits (NF4; QLoRA, arXiv:2305.14314)."""


def add_adapters(model: PreTrainedModel, vocabulary: Vocabulary, config: LoraConfig) -> Any:
    """Freeze a model in place and add adapters; then only they and the new rows are trainable.

    Returns:
        PEFT's wrapper of the same model, for `merge_adapters`.

    Raises:
        ConfigError: A target module does not exist.
        MissingExtraError: PEFT is not installed.
    """
    peft: Any = require_extra("peft", "lora")
    layers = {
        name.rpartition(".")[2]
        for block in decoder_blocks(model)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }
    unknown = [name for name in config.target_modules if name not in layers]
    if unknown:
        raise ConfigError(
            f"model.lora.target_modules: expected names of linear layers of the blocks, got "
            f"'{unknown[0]}'. Known: {', '.join(sorted(layers))}."
        )
    image = vocabulary.image_slice
    special = (vocabulary.boi, vocabulary.eoi, vocabulary.unconditional)
    new_rows = sorted({*special, *range(image.start, image.stop)})
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules or layers),
        # Keyed by name, because a plain list would not train the rows of an untied head.
        trainable_token_indices=dict.fromkeys(_table_names(model), new_rows),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings)


def merge_adapters(adapted: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Merge trained adapters into dense weights and return a stock model.

    Args:
        adapted: Result of `add_adapters` on a model with the original weights.
        weights: Trained parameters, by their names in that model.
    """
    with torch.no_grad():
        for name, parameter in adapted.get_base_model().named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    return cast("PreTrainedModel", adapted.merge_and_unload())


def four_bit_config(compute_dtype: torch.dtype) -> Any:
    """Return the transformers setting for frozen NF4 weights with double quantization."""
    require_extra("bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_four_bit_layout(model: PreTrainedModel) -> None:
    """Prevent evaluation from changing frozen 4-bit weights.

    On CPUs with bfloat16 instructions, bitsandbytes permanently converts them to a layout with
    coarser scales when they are first used in evaluation mode.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            cast("Any", layer).support_avx512bf16_for_cpu = False


def is_new_rows(name: str) -> bool:
    """Return whether a parameter's name is that of separately trained rows of a table."""
    return ".token_adapter." in name


def effective_weight(layer: nn.Module) -> Tensor:
    """Return the weight (V, D) of a table or head, including separately trained rows."""
    rows: Any = getattr(layer, "token_adapter", None)
    if rows is None:
        return cast("Tensor", layer.weight)
    return cast("Tensor", rows.get_merged_weights(rows.active_adapters))


def unwrap(layer: nn.Module) -> nn.Module:
    """Return the layer inside PEFT's wrapper for separately trained rows, or the layer itself."""
    inner: nn.Module = getattr(layer, "original_module", layer)
    return inner


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks, which are the first list of modules in every family."""
    return next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))


def _table_names(model: PreTrainedModel) -> list[str]:
    """Return the last part of the name of the embedding table and of an untied head."""
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head.weight is cast("nn.Embedding", table).weight
    wanted = {id(table)} if tied else {id(table), id(head)}
    return [name.rpartition(".")[2] for name, part in model.named_modules() if id(part) in wanted]
