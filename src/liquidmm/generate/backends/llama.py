"""The Llama-like families that the "cpu" and "torch" backends run.

Their pre-norm blocks have RMSNorm, rotary attention with grouped heads and a gated MLP. They are
Llama, Mistral, Qwen2, Qwen3 and Gemma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not depend on the length of the input."""
_DTYPES = (torch.float32, torch.bfloat16)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return why a model is not in one of these families, or None if it is."""
    for is_met, reason in _REQUIREMENTS:
        if not is_met(model):
            return reason.format(model=model, config=model.config, rope_type=_rope_type(model))
    return None


def _attends_to_all(model: PreTrainedModel) -> bool:
    config: Any = model.config
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    # A Mistral config can have a window but no layer types.
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    context = config.max_position_embeddings
    return types == {"full_attention"} and (window or context) >= context


def _rope_type(model: PreTrainedModel) -> str:
    parameters = getattr(model.config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def _has_plain_layers(model: PreTrainedModel) -> bool:
    return all(
        type(layer) is nn.Linear and type(layer.weight.data) is Tensor
        for layer in _linear_layers(model)
    )


def _linear_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    for layer in cast("Any", model.base_model).layers:
        for name in _PROJECTIONS:
            yield getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
    yield cast("nn.Module", model.get_output_embeddings())  # type: ignore[no-untyped-call]


_REQUIREMENTS: tuple[tuple[Callable[[PreTrainedModel], bool], str], ...] = (
    (
        lambda model: model.config.model_type in _FAMILIES,
        f"the family '{{config.model_type}}' is not one of {', '.join(_FAMILIES)}",
    ),
    (_attends_to_all, "some layers use sliding-window attention"),
    (lambda model: _rope_type(model) in _ROPE_TYPES, "its rope_type is '{rope_type}'"),
    (
        lambda model: model.config.hidden_act in ACTIVATIONS,
        "its activation is '{config.hidden_act}'",
    ),
    (
        lambda model: model.device.type in ("cpu", "cuda") and model.dtype in _DTYPES,
        "its weights are {model.dtype} on {model.device.type}",
    ),
    (_has_plain_layers, "some of its linear layers are adapted, quantized or sharded"),
)
"""Conditions on a model, each with the reason to report if it is not met."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaWeights:
    """Sizes and modules of a model of these families."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # D
    intermediate: int
    activation: str  # one of `ACTIVATIONS`
    eps: float  # added to the mean square in RMSNorm
    scaling: float  # multiplies the products of queries and keys
    embedding_scale: float | None  # multiplies the embeddings
    table: Tensor  # embeddings, (tokens, hidden)
    cosines: Tensor  # of the rotary angles, (context, D / 2), float32
    sines: Tensor
    layers: tuple[Any, ...]  # the blocks, modules of transformers
    norm: Any  # the last RMSNorm
    head: nn.Linear
    norm_offset: float  # added to the weights of a norm

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> LlamaWeights:
        """Read a model for which `unsupported_reason` is None."""
        config: Any = model.config
        base: Any = model.base_model
        attention = base.layers[0].self_attn
        is_gemma = config.model_type == "gemma"
        positions = torch.arange(config.max_position_embeddings, device=model.device)[None]
        exact = torch.empty(0, dtype=torch.float32, device=model.device)
        half = attention.head_dim // 2
        cosines, sines = base.rotary_emb(exact, positions)
        return cls(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            intermediate=config.intermediate_size,
            activation=config.hidden_act,
            eps=config.rms_norm_eps,
            scaling=attention.scaling,
            # Gemma adds 1 to the weights of its norms and scales its embeddings.
            embedding_scale=config.hidden_size**0.5 if is_gemma else None,
            table=base.embed_tokens.weight.detach(),
            cosines=cosines[0, :, :half].contiguous(),
            sines=sines[0, :, :half].contiguous(),
            layers=tuple(base.layers),
            norm=base.norm,
            head=cast("nn.Linear", model.get_output_embeddings()),  # type: ignore[no-untyped-call]
            norm_offset=1.0 if is_gemma else 0.0,
        )

    def scales(self, norm: Any) -> Tensor:
        """Return the scales of an RMSNorm of this model."""
        return cast("Tensor", norm.weight.detach() + self.norm_offset)
