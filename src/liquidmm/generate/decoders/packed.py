"""The families written by hand, in PyTorch, fused: for accelerators, and CPUs without `native`.

Contract: that of `decoder.Decoder`, up to rounding. The weights are read from the model's own
parameters when the decoder is made; later changes of the model are not seen, and parameters that
are laid out in the type they had share the decoder's memory.

Queries, keys and values come from one product, and so that rotating them is one complex
multiplication, the dimensions of a head are reordered in pairs: (0, D/2, 1, D/2 + 1, ...). That
leaves every product of a query with a key as it was.
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

from liquidmm.generate.decoders.by_hand import Anatomy
from liquidmm.generate.decoders.cache import KeyValues

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matrix:
    """Maps (N, K) to (N, M)."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One block, laid out."""

    attention_norm: Tensor
    qkv: _Matrix
    head_norms: Tensor | None  # scales of RMSNorm on queries and keys, (heads, D)
    output: _Matrix
    mlp_norm: Tensor
    gate_up: _Matrix
    down: _Matrix


class PackedDecoder:
    """The decoder of a family that is written by hand."""

    exact = False

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Lay the weights out.

        Args:
            model: A model that `by_hand.why_not` has nothing against.
            dtype: How weights are held and activations computed: float32 or bfloat16.
        """
        self.device: torch.device = model.device
        self._dtype = dtype
        self._parts = parts = Anatomy.of(model)
        self._groups = parts.heads // parts.kv_heads
        self._activation = _ACTIVATIONS[parts.activation]
        self._layers = [self._lay_out(layer) for layer in parts.layers]
        self._norm = self._scales(parts.norm)
        self._turns = torch.complex(parts.cosines, parts.sines)
        self._heads: dict[tuple[int, int], _Matrix] = {}
        layers, kv_heads, size = len(parts.layers), parts.kv_heads, parts.head_dim
        self._cache = KeyValues(layers, kv_heads, size, dtype, self.device)

    @torch.inference_mode()
    def reserve(self, rows: int, length: int) -> None:
        """Make room; see `decoder.Decoder`."""
        self._cache.reserve(rows, length)

    @torch.inference_mode()
    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        """Take the next ids of neighbouring rows; see `decoder.Decoder`."""
        rows, steps = ids.shape
        positions = starts[:, None] + torch.arange(steps, device=self.device)
        turns = self._turns[positions.view(-1)][:, None]
        heads = 2 * self._parts.kv_heads
        lines = torch.arange(first * heads, (first + rows) * heads, device=self.device)
        places = lines.view(rows, 1, heads) * self._cache.room[1] + positions[..., None]
        places = places.view(-1)
        seen = torch.arange(span, device=self.device) <= positions[..., None]
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self.device)
        mask = mask.masked_fill_(~seen, -torch.inf)[:, None]
        if steps > 1 and self._groups > 1:
            mask = mask.repeat(1, 1, self._groups, 1)
        hidden = functional.embedding(ids.view(-1), self._parts.table).to(self._dtype)
        if self._parts.embedding_scale is not None:
            hidden = hidden * self._parts.embedding_scale
        for layer, held in zip(self._layers, self._cache.layers, strict=True):
            x = self._normed(hidden, layer.attention_norm)
            queries = self._project(layer.qkv(x), layer, turns, places, held)
            keys, values = held[first : first + rows, ..., :span, :].unbind(1)
            attended = self._attend(queries, keys, values, mask)
            hidden = layer.output(attended).add_(hidden)
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = layer.down(self._activation(gate).mul_(up)).add_(hidden)
        return self._normed(hidden, self._norm).view(rows, steps, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Map last hidden states to the logits of some ids; see `decoder.Decoder`."""
        key = (rows.start, rows.stop)
        if key not in self._heads:
            head = self._parts.head
            bias = None if head.bias is None else head.bias.detach()[rows].to(self._dtype)
            self._heads[key] = _Matrix(weight=head.weight.detach()[rows].to(self._dtype), bias=bias)
        return self._heads[key](hidden)

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy positions of a row to other rows; see `decoder.Decoder`."""
        self._cache.copy(source, targets, length)

    def _project(
        self, qkv: Tensor, layer: _Layer, turns: Tensor, places: Tensor, held: Tensor
    ) -> Tensor:
        """Give the queries, (N, heads * D), rotated; write keys and values into the cache."""
        size, kv_heads = self._parts.head_dim, self._parts.kv_heads
        rotated = self._parts.heads + kv_heads
        turned = qkv[:, : rotated * size].view(-1, rotated, size)
        if layer.head_norms is not None:
            turned.copy_(self._at_unit(turned).mul_(layer.head_norms))
        exact = torch.view_as_complex(turned.float().view(-1, rotated, size // 2, 2))
        turned.copy_(torch.view_as_real(exact * turns).flatten(-2))
        split = self._parts.heads * size
        held.view(-1, size).index_copy_(0, places, qkv[:, split:].reshape(-1, size))
        return qkv[:, :split]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend from queries (N, heads * D) to keys and values (R, kv_heads, S, D).

        Returns:
            (N, heads * D).
        """
        # The queries that share a key head stand in line, as if they were more positions.
        rows, kv_heads, _, size = keys.shape
        steps = queries.shape[0] // rows
        q = queries.view(rows, steps, kv_heads, self._groups, size)
        q = q.permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, self._groups * steps, size)
        y = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=self._parts.scaling
        )
        y = y.view(rows, kv_heads, self._groups, steps, size)
        return y.permute(0, 3, 1, 2, 4).reshape(rows * steps, -1)

    def _normed(self, x: Tensor, scales: Tensor) -> Tensor:
        return functional.rms_norm(x, scales.shape, scales, self._parts.eps)

    def _at_unit(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], None, self._parts.eps)

    def _scales(self, norm: Any) -> Tensor:
        return self._parts.scales(norm).to(self._dtype)

    def _lay_out(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            norms = (attention.q_norm, self._parts.heads), (attention.k_norm, self._parts.kv_heads)
            scales = [self._in_pairs(self._scales(norm)).expand(count, -1) for norm, count in norms]
            head_norms = torch.cat(scales)
        return _Layer(
            attention_norm=self._scales(layer.input_layernorm),
            qkv=self._join((attention.q_proj, attention.k_proj, attention.v_proj), turned=2),
            head_norms=head_norms,
            output=self._join((attention.o_proj,)),
            mlp_norm=self._scales(layer.post_attention_layernorm),
            gate_up=self._join((mlp.gate_proj, mlp.up_proj)),
            down=self._join((mlp.down_proj,)),
        )

    def _join(self, layers: Sequence[nn.Linear], turned: int = 0) -> _Matrix:
        """Make one matrix of linear layers; the outputs of the first ones will be rotated."""

        def joined(parts: Sequence[Tensor]) -> Tensor:
            ordered = [self._in_pairs(part) for part in parts[:turned]]
            return torch.cat([*ordered, *parts[turned:]]).to(self._dtype)

        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        weight = joined([layer.weight.detach() for layer in layers])
        if weight.dtype == layers[0].weight.dtype:
            # The model's own weights become parts of the joined one, so that none is held twice.
            parts = torch.split(weight, [layer.out_features for layer in layers])
            for layer, part in list(zip(layers, parts, strict=True))[turned:]:
                layer.weight.data = part
        return _Matrix(weight=weight, bias=joined(biases) if biases else None)

    def _in_pairs(self, weight: Tensor) -> Tensor:
        """Reorder the rows of each head, (heads * D, ...): what turns together becomes a pair."""
        size = self._parts.head_dim
        halves = weight.detach().view(-1, 2, size // 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)
