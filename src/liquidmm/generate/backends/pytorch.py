"""The "torch" backend: Llama-like families in fused PyTorch, for accelerators and as the fallback.

The weights are read when the backend is created; later changes to the model have no effect.
Parameters that keep their dtype share memory with the backend.

One matrix product computes queries, keys and values. The dimensions of a head are reordered in
pairs (0, D/2, 1, D/2 + 1, ...), which makes the rotation one complex multiplication and does not
change the products of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from liquidmm.generate.backends.cache import KVCache
from liquidmm.generate.backends.llama import LlamaWeights

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Linear:
    """Maps (N, K) to (N, M)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """The weights of one block."""

    attention_norm: Tensor
    qkv: _Linear
    head_norms: Tensor | None  # RMSNorm scales of queries and keys, (heads, D)
    output: _Linear
    mlp_norm: Tensor
    gate_up: _Linear
    down: _Linear


class TorchBackend:
    """Runs a model for which `llama.unsupported_reason` is None, in its own dtype."""

    batch_invariant = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.device: torch.device = model.device
        self._dtype = model.dtype
        self._weights = weights = LlamaWeights.from_model(model)
        self._groups = weights.heads // weights.kv_heads
        self._activation = _ACTIVATIONS[weights.activation]
        self._layers = [self._make_layer(layer) for layer in weights.layers]
        self._norm = self._norm_scales(weights.norm)
        self._rotations = torch.complex(weights.cosines, weights.sines)
        self._heads: dict[tuple[int, int], _Linear] = {}
        layers, kv_heads, size = len(weights.layers), weights.kv_heads, weights.head_dim
        self._cache = KVCache(layers, kv_heads, size, self._dtype, self.device)

    @torch.inference_mode()
    def reserve(self, slots: int, length: int) -> None:
        """See `Backend`."""
        self._cache.reserve(slots, length)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        """See `Backend`."""
        slots, steps = tokens.shape
        positions = starts[:, None] + torch.arange(steps, device=self.device)
        rotations = self._rotations[positions.view(-1)][:, None]
        heads = 2 * self._weights.kv_heads
        lines = torch.arange(first_slot * heads, (first_slot + slots) * heads, device=self.device)
        targets = lines.view(slots, 1, heads) * self._cache.shape[1] + positions[..., None]
        targets = targets.view(-1)
        visible = torch.arange(kv_length, device=self.device) <= positions[..., None]
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=self.device)
        mask = mask.masked_fill_(~visible, -torch.inf)[:, None]
        if steps > 1 and self._groups > 1:
            mask = mask.repeat(1, 1, self._groups, 1)
        hidden = functional.embedding(tokens.view(-1), self._weights.table).to(self._dtype)
        if self._weights.embedding_scale is not None:
            hidden = hidden * self._weights.embedding_scale
        for layer, cached in zip(self._layers, self._cache.layers, strict=True):
            x = self._normalize(hidden, layer.attention_norm)
            queries = self._rope_and_cache(layer.qkv(x), layer, rotations, targets, cached)
            keys, values = cached[first_slot : first_slot + slots, ..., :kv_length, :].unbind(1)
            attended = self._attention(queries, keys, values, mask)
            hidden = layer.output(attended).add_(hidden)
            gate, up = layer.gate_up(self._normalize(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = layer.down(self._activation(gate).mul_(up)).add_(hidden)
        return self._normalize(hidden, self._norm).view(slots, steps, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """See `Backend`."""
        key = (tokens.start, tokens.stop)
        if key not in self._heads:
            head = self._weights.head
            bias = None if head.bias is None else head.bias.detach()[tokens]
            self._heads[key] = _Linear(weight=head.weight.detach()[tokens], bias=bias)
        return self._heads[key](hidden)

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `Backend`."""
        self._cache.copy(source, targets, length)

    def _rope_and_cache(
        self, qkv: Tensor, layer: _Layer, rotations: Tensor, targets: Tensor, cached: Tensor
    ) -> Tensor:
        """Write keys and values into the cache; return the rotated queries, (N, heads * D)."""
        size, kv_heads = self._weights.head_dim, self._weights.kv_heads
        rotated = self._weights.heads + kv_heads
        x = qkv[:, : rotated * size].view(-1, rotated, size)
        if layer.head_norms is not None:
            normalized = functional.rms_norm(x, (size,), None, self._weights.eps)
            x.copy_(normalized.mul_(layer.head_norms))
        pairs = torch.view_as_complex(x.float().view(-1, rotated, size // 2, 2))
        x.copy_(torch.view_as_real(pairs * rotations).flatten(-2))
        split = self._weights.heads * size
        cached.view(-1, size).index_copy_(0, targets, qkv[:, split:].reshape(-1, size))
        return qkv[:, :split]

    def _attention(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend from queries (N, heads * D) to keys and values (S, kv_heads, L, D).

        Returns:
            (N, heads * D).
        """
        # Queries that share a key head are laid out as additional positions.
        slots, kv_heads, _, size = keys.shape
        steps = queries.shape[0] // slots
        q = queries.view(slots, steps, kv_heads, self._groups, size)
        q = q.permute(0, 2, 3, 1, 4).reshape(slots, kv_heads, self._groups * steps, size)
        y = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=self._weights.scaling
        )
        y = y.view(slots, kv_heads, self._groups, steps, size)
        return y.permute(0, 3, 1, 2, 4).reshape(slots * steps, -1)

    def _normalize(self, x: Tensor, scales: Tensor) -> Tensor:
        return functional.rms_norm(x, scales.shape, scales, self._weights.eps)

    def _norm_scales(self, norm: Any) -> Tensor:
        return self._weights.scales(norm).to(self._dtype)

    def _make_layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            heads, kv_heads = self._weights.heads, self._weights.kv_heads
            norms = ((attention.q_norm, heads), (attention.k_norm, kv_heads))
            head_norms = torch.cat(
                [self._in_pairs(self._norm_scales(norm)).expand(n, -1) for norm, n in norms]
            )
        return _Layer(
            attention_norm=self._norm_scales(layer.input_layernorm),
            qkv=self._join((attention.q_proj, attention.k_proj, attention.v_proj), rotated=2),
            head_norms=head_norms,
            output=self._join((attention.o_proj,)),
            mlp_norm=self._norm_scales(layer.post_attention_layernorm),
            gate_up=self._join((mlp.gate_proj, mlp.up_proj)),
            down=self._join((mlp.down_proj,)),
        )

    def _join(self, layers: Sequence[nn.Linear], rotated: int = 0) -> _Linear:
        """Join linear layers; the outputs of the first ``rotated`` ones will be rotated."""

        def join(parts: Sequence[Tensor]) -> Tensor:
            reordered = [self._in_pairs(part) for part in parts[:rotated]]
            return torch.cat([*reordered, *parts[rotated:]]).to(self._dtype)

        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        weight = join([layer.weight.detach() for layer in layers])
        if weight.dtype == layers[0].weight.dtype:
            # The model's own weights become views of the joined weight, so there is only one copy.
            parts = torch.split(weight, [layer.out_features for layer in layers])
            for layer, part in list(zip(layers, parts, strict=True))[rotated:]:
                layer.weight.data = part
        return _Linear(weight=weight, bias=join(biases) if biases else None)

    def _in_pairs(self, weight: Tensor) -> Tensor:
        """Reorder the rows of each head, (heads * D, ...), so that rotated pairs are adjacent."""
        size = self._weights.head_dim
        halves = weight.detach().view(-1, 2, size // 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)
