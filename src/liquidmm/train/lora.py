"""Low-rank adapters (LoRA, QLoRA) beside fully trained new rows, through PEFT.

Contract: what an adapted model learns are the low-rank matrices and the rows of the embedding table
and of an untied head that the image codes and markers have; every other weight stays bit for bit
what it was. The release's script adapts the blocks alone, so its new rows are never learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError
from liquidmm.runtime import require_extra
from liquidmm.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "targets": "target_modules",
        "quantize": "load_in_4bit",
    }

    rank: int = 16
    """Rank of each update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in training."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of the linear layers to adapt, such as "q_proj"; none adapts all of
    the blocks."""
    load_in_4bit: bool = False
    """Keep the frozen weights of the blocks in 4 bits (NF4; QLoRA, arXiv:2305.14314)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rank < 1:
            raise ConfigError(f"rank: must be at least 1 ({self.rank}).")
        if not self.alpha > 0:
            raise ConfigError(f"alpha: must be above 0 ({self.alpha}).")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: must be from 0 to below 1 ({self.dropout}).")


def add_adapters(model: PreTrainedModel, vocabulary: Vocabulary, config: LoraConfig) -> Any:
    """Freeze a model and put adapters into it.

    Args:
        model: The decoder with its weights; it is changed in place, and its trainable parameters
            are then the adapters and the new rows.
        vocabulary: Where its new rows lie.
        config: Rank, targets and so on.

    Returns:
        PEFT's view of the same model, for `merge`.

    Raises:
        ConfigError: No linear layer has one of the target names.
        MissingExtraError: PEFT isn't installed.
    """
    peft: Any = require_extra("peft", "lora")
    layers = {
        name.rpartition(".")[2]
        for block in blocks_of(model)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }
    unknown = [name for name in config.target_modules if name not in layers]
    if unknown:
        raise ConfigError(
            f"lora.target_modules: no linear layer of the blocks is called '{unknown[0]}'. "
            f"There are: {', '.join(sorted(layers))}."
        )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules or layers),
        # The form with names trains the rows of an untied head too; a plain list would not.
        trainable_token_indices={name: _new_rows(vocabulary) for name in _tables(model)},
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings)


def is_new_rows(name: str) -> bool:
    """Tell by a parameter's name whether it is rows of a table that are trained apart."""
    return ".token_adapter." in name


def merge(adapted: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Work trained adapters into dense weights.

    Args:
        adapted: What `add_adapters` gave for a model with the original weights.
        weights: Trained parameters, by their names in that model.

    Returns:
        A stock model without any trace of adapters.
    """
    with torch.no_grad():
        for name, parameter in adapted.get_base_model().named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    return cast("PreTrainedModel", adapted.merge_and_unload())


def four_bits(compute: torch.dtype) -> Any:
    """Give transformers' setting for frozen weights in 4 bits: NF4, doubly quantized.

    Args:
        compute: Type that the weights are brought back to for each product.

    Raises:
        MissingExtraError: bitsandbytes isn't installed.
    """
    require_extra("bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_four_bits(model: PreTrainedModel) -> None:
    """Let evaluation change nothing about frozen weights in 4 bits.

    On CPUs with bfloat16 instructions bitsandbytes lays them out anew, with coarser scales, the
    first time they are used in evaluation mode, and never back.

    Args:
        model: A decoder loaded with `four_bits`; changed in place.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            cast("Any", layer).support_avx512bf16_for_cpu = False


def weight_of(layer: nn.Module) -> Tensor:
    """Give the weight a table or head computes with, rows that are trained apart put in.

    Args:
        layer: An embedding table or a linear head, adapted or not.

    Returns:
        The weight, (V, D), differentiable by what is trained of it.
    """
    rows: Any = getattr(layer, "token_adapter", None)
    if rows is None:
        return cast("Tensor", layer.weight)
    return cast("Tensor", rows.get_merged_weights(rows.active_adapters))


def unwrapped(layer: nn.Module) -> nn.Module:
    """Give the layer itself, where PEFT wrapped it to train some of its rows."""
    inner: nn.Module = getattr(layer, "original_module", layer)
    return inner


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Find the decoder blocks: the first list of modules, in every family."""
    return next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))


def _tables(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the embedding table and of an untied head."""
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head.weight is cast("nn.Embedding", table).weight
    wanted = {id(table)} if tied else {id(table), id(head)}
    return [name.rpartition(".")[2] for name, part in model.named_modules() if id(part) in wanted]


def _new_rows(vocabulary: Vocabulary) -> list[int]:
    image = vocabulary.image_slice
    markers = (vocabulary.boi, vocabulary.eoi, vocabulary.unconditional)
    return sorted({*markers, *range(image.start, image.stop)})
