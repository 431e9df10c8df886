"""The families that are written by hand: which models they are, and what they are made of.

Contract: pre-norm blocks of RMSNorm, rotary attention with grouped heads, and a gated feed-forward
(Llama, Mistral, Qwen2, Qwen3, Gemma). `why_not` says why a model isn't one of them; `Anatomy` reads
one that is, without changing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
_ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles don't depend on the length of the input."""
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
"""Known activations."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def why_not(model: PreTrainedModel) -> str | None:
    """Say why a model isn't written by hand, or return None where it is."""
    config: Any = model.config
    if config.model_type not in _FAMILIES:
        return f"the family '{config.model_type}' is not written by hand"
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if types != {"full_attention"} or (
        config.model_type == "mistral"
        and (window or config.max_position_embeddings) < config.max_position_embeddings
    ):
        return "some of its layers attend to a sliding window"
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS:
        return f"its rotary embedding is of the kind '{rotation}'"
    if config.hidden_act not in ACTIVATIONS:
        return f"its activation is '{config.hidden_act}'"
    known = model.device.type in ("cpu", "cuda")
    if not known or model.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {model.dtype} on {model.device.type}"
    layers = list(_linear_layers(model))
    weights = (layer.weight for layer in layers if type(layer) is nn.Linear)
    if sum(type(weight.data) is Tensor for weight in weights) < len(layers):
        return "some of its linear layers are adapted, quantized or sharded"
    return None


def _linear_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    for layer in cast("Any", model.base_model).layers:
        for name in _PROJECTIONS:
            yield getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
    yield cast("nn.Module", model.get_output_embeddings())  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """Sizes and parts of a model of these families."""

    hidden: int
    """Width of the stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key heads, each of which ``heads / kv_heads`` query heads share."""
    head_dim: int
    """Width of a head, D."""
    intermediate: int
    """Width of the feed-forward."""
    activation: str
    """One of `ACTIVATIONS`."""
    eps: float
    """What RMSNorm adds to the mean square."""
    scaling: float
    """What products of queries and keys are multiplied by."""
    embedding_scale: float | None
    """What embeddings are multiplied by, or None."""
    table: Tensor
    """Embeddings, (ids, hidden)."""
    cosines: Tensor
    """Of each position's angles, (context, D / 2), float32."""
    sines: Tensor
    """Of each position's angles, (context, D / 2), float32."""
    layers: tuple[Any, ...]
    """The blocks, modules of transformers."""
    norm: Any
    """The last RMSNorm."""
    head: nn.Linear
    """The head."""
    norm_offset: float
    """What a norm's weight lacks of its scale."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Anatomy:
        """Read a model that `why_not` has nothing against."""
        config: Any = model.config
        base: Any = model.base_model
        attention = base.layers[0].self_attn
        gemma = config.model_type == "gemma"
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
            # Gemma's norms hold what is added to 1, and its embeddings are scaled.
            embedding_scale=config.hidden_size**0.5 if gemma else None,
            table=base.embed_tokens.weight.detach(),
            cosines=cosines[0, :, :half].contiguous(),
            sines=sines[0, :, :half].contiguous(),
            layers=tuple(base.layers),
            norm=base.norm,
            head=cast("nn.Linear", model.get_output_embeddings()),  # type: ignore[no-untyped-call]
            norm_offset=1.0 if gemma else 0.0,
        )

    def scales(self, norm: Any) -> Tensor:
        """Return what an RMSNorm of this model multiplies by."""
        return cast("Tensor", norm.weight.detach() + self.norm_offset)
