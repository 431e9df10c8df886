"""The Llama family by hand: fused, laid out for decoding, a dozen operators a layer.

Contract: the same as `decoder.FamilyDecoder` for the families it knows, up to rounding: pre-norm
blocks of RMSNorm, rotary attention with grouped heads, and a gated feed-forward (Llama, Mistral,
Qwen2, Qwen3, Gemma). `why_not` says why a model isn't one of them; then transformers' own code
runs it. The weights are read from the model's own parameters when the decoder is made, and laid out
anew; later changes of the model are not seen. In float32 on one CPU thread, a row's results don't
depend on the other rows of a pass, bit for bit; with more threads only the sums of attention do.

Queries, keys and values come from one product, and so that rotating them is one complex
multiplication, the dimensions of a head are reordered in pairs: (0, D/2, 1, D/2 + 1, ...). That
leaves every product of a query with a key as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from liquidmm.generate.matrices import (
    COLUMNS,
    Matrix,
    PlainMatrix,
    Weights,
    fewest_rows,
    matrix_maker,
    pad_rows,
)

_FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
_ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles don't depend on the length of the input."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def why_not(model: PreTrainedModel, weights: Weights = "float32") -> str | None:
    """Say why `PackedDecoder` can't run a model with such weights, or return None where it can."""
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
    if config.hidden_act not in _ACTIVATIONS:
        return f"its activation is '{config.hidden_act}'"
    if model.dtype not in (torch.float32, torch.bfloat16) or model.device.type not in (
        "cpu",
        "cuda",
    ):
        return f"its weights are {model.dtype} on {model.device.type}"
    layers = list(_linear_layers(model))
    weights_of = (layer.weight for layer in layers if type(layer) is nn.Linear)
    if sum(type(weight.data) is Tensor for weight in weights_of) < len(layers):
        return "some of its linear layers are adapted, quantized or sharded"
    group = COLUMNS[weights]
    columns = {cast("nn.Linear", layer).in_features for layer in layers}
    if odd := [count for count in sorted(columns) if count % group]:
        return f"{weights} takes groups of {group} columns, and a weight has {odd[0]}"
    return None


def _linear_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    for layer in cast("Any", model.base_model).layers:
        for name in _PROJECTIONS:
            yield getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
    yield cast("nn.Module", model.get_output_embeddings())  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One block, laid out."""

    attention_norm: Tensor
    qkv: Matrix
    head_norms: Tensor | None  # scales of RMSNorm on queries and keys, (heads, D)
    output: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix


class PackedDecoder:
    """The decoder of a family that is written by hand."""

    def __init__(self, model: PreTrainedModel, weights: Weights) -> None:
        """Lay the weights out.

        Args:
            model: A model that `why_not` has nothing against.
            weights: How they are held; activations are float32 beside float32 weights, and
                bfloat16 beside all others.

        Raises:
            ConfigError: There is no such layout on the model's device.
        """
        config: Any = model.config
        base: Any = model.base_model
        self.device: torch.device = model.device
        self._model = model
        self._make = matrix_maker(weights, self.device)
        self._dtype = torch.float32 if weights == "float32" else torch.bfloat16
        # Few CPUs multiply bfloat16 in hardware; attention reads little, so it can be exact there.
        self._cpu = self.device.type == "cpu"
        self._held = torch.float32 if self._cpu else self._dtype
        self._fewest = fewest_rows(self._dtype) if self._cpu else 1
        self._eps: float = config.rms_norm_eps
        self._groups: int = config.num_attention_heads // config.num_key_value_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = base.layers[0].self_attn.head_dim
        self._rotated = config.num_attention_heads + config.num_key_value_heads
        self._scaling: float = base.layers[0].self_attn.scaling
        self._activation = _ACTIVATIONS[config.hidden_act]
        sizes = (config.hidden_size, self._head_dim)
        self._least = {size: torch.tensor((size * self._eps) ** 0.5) for size in sizes}
        # Gemma's norms hold what is added to 1, and its embeddings are scaled.
        self._one = 1.0 if config.model_type == "gemma" else 0.0
        self._scale = config.hidden_size**0.5 if config.model_type == "gemma" else None
        self._table: Tensor = base.embed_tokens.weight.detach()
        self._layers = [self._lay_out(layer) for layer in base.layers]
        self._norm = self._scales(base.norm)
        self._turns = self._rotations(base.rotary_emb, config.max_position_embeddings)
        self._heads: dict[tuple[int, int], Matrix] = {}
        self._room = (0, 0)
        self._cache: list[Tensor] = []
        self._seen = (0, 0, 0)
        self._views: list[tuple[Tensor, Tensor, Tensor]] = []

    def reserve(self, rows: int, length: int) -> None:
        """Make room; see `decoder.Decoder`."""
        old = self._room
        self._room = (max(rows, old[0]), max(length, old[1]))
        if self._room == old:
            return
        self._views = []
        rows, length = self._room
        shape = (rows, 2, self._kv_heads, length, self._head_dim)
        for place, _ in enumerate(self._layers):
            # One layer at a time, so that no more than a layer is held twice.
            new = torch.zeros(shape, dtype=self._held, device=self.device)
            if self._cache[place:]:
                new[: old[0], :, :, : old[1]] = self._cache[place]
                self._cache[place] = new
            else:
                self._cache.append(new)

    @torch.inference_mode()
    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        """Take the next ids of neighbouring rows; see `decoder.Decoder`."""
        rows, steps = ids.shape
        positions = starts[:, None] + torch.arange(steps, device=self.device)
        turns = self._turns[positions.view(-1)][:, None]
        heads = 2 * self._kv_heads
        lines = torch.arange(first * heads, (first + rows) * heads, device=self.device)
        places = lines.view(rows, 1, heads) * self._room[1] + positions[..., None]
        places = places.view(-1)
        seen = torch.arange(span, device=self.device) <= positions[..., None]
        mask = torch.zeros(seen.shape, dtype=self._held, device=self.device)
        mask = mask.masked_fill_(~seen, -torch.inf)[:, None]
        if steps > 1 and self._groups > 1:
            mask = mask.repeat(1, 1, self._groups, 1)
        count = rows * steps
        # Products of few rows are padded once for all layers, instead of in each of them.
        padded = max(count, self._fewest)
        hidden = functional.embedding(ids.view(-1), self._table).to(self._dtype)
        hidden = pad_rows(hidden, padded)
        attended = hidden.new_zeros(padded, self._groups * self._kv_heads * self._head_dim)
        outputs = attended[:count].view(rows, steps, self._kv_heads, self._groups, self._head_dim)
        if self._scale is not None:
            hidden = hidden * self._scale
        views = self._views_of(first, rows, span)
        for layer, (held, keys, values) in zip(self._layers, views, strict=True):
            x = self._normed(hidden, layer.attention_norm)
            queries = self._project(layer.qkv(x)[:count], layer, turns, places, held)
            outputs.copy_(self._attend(queries, keys, values, mask))
            hidden = layer.output(attended).add_(hidden)
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = layer.down(self._activation(gate).mul_(up)).add_(hidden)
        return self._normed(hidden[:count], self._norm).view(rows, steps, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Map last hidden states to the logits of some ids; see `decoder.Decoder`."""
        key = (rows.start, rows.stop)
        if key not in self._heads:
            head: nn.Linear = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
            bias = None if head.bias is None else head.bias.detach()[rows]
            self._heads[key] = self._make(head.weight.detach()[rows], bias)
        return self._heads[key](hidden)

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy positions of a row to other rows; see `decoder.Decoder`."""
        for held in self._cache:
            held[list(targets), ..., :length, :] = held[source, ..., :length, :]

    def _views_of(self, first: int, rows: int, span: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Give each layer's whole cache, (places, D), and the keys and values of neighbouring rows.

        They are (R, heads, span, D), and mostly those of the pass before.
        """
        if self._seen != (first, rows, span) or not self._views:
            self._seen = (first, rows, span)
            self._views = []
            for held in self._cache:
                keys, values = held[first : first + rows, ..., :span, :].unbind(1)
                self._views.append((held.view(-1, self._head_dim), keys, values))
        return self._views

    def _project(
        self, qkv: Tensor, layer: _Layer, turns: Tensor, places: Tensor, held: Tensor
    ) -> Tensor:
        """Give the queries, (N, heads * D), rotated; write keys and values into the cache."""
        qkv = qkv.to(self._held)
        width = self._rotated * self._head_dim
        turned = qkv[:, :width].view(-1, self._rotated, self._head_dim)
        if layer.head_norms is not None:
            turned.copy_(self._at_unit(turned).mul_(layer.head_norms))
        if turned.dtype == torch.float32:
            torch.view_as_complex(turned.view(*turned.shape[:-1], -1, 2)).mul_(turns)
        else:
            exact = torch.view_as_complex(turned.float().view(*turned.shape[:-1], -1, 2))
            turned.copy_(torch.view_as_real(exact * turns).flatten(-2))
        split = width - self._kv_heads * self._head_dim
        new = qkv[:, split:].reshape(-1, self._head_dim)
        held.index_copy_(0, places, new)
        return qkv[:, :split]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend from queries (N, heads * D) to keys and values (R, heads, S, D).

        Returns:
            (R, T, heads, queries of a head, D).
        """
        # The queries that share a key head stand in line, as if they were more positions.
        rows, size = keys.shape[0], self._head_dim
        steps = queries.shape[0] // rows
        q = queries.view(rows, steps, self._kv_heads, self._groups, size)
        q = q.permute(0, 2, 3, 1, 4).reshape(rows, self._kv_heads, self._groups * steps, size)
        y = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=self._scaling
        )
        y = y.view(rows, self._kv_heads, self._groups, steps, size)
        return y.permute(0, 3, 1, 2, 4)

    def _normed(self, x: Tensor, scales: Tensor) -> Tensor:
        if self._cpu:
            return self._at_unit(x).mul_(scales).to(self._dtype)
        return functional.rms_norm(x, scales.shape, scales, self._eps)

    def _at_unit(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square; on a CPU by that of the sum of the squares."""
        if not self._cpu:
            return functional.rms_norm(x, x.shape[-1:], None, self._eps)
        # PyTorch's own is a chain of nine operators there; these are three.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scaled: Tensor = x / length.hypot_(self._least[x.shape[-1]])
        return scaled

    def _scales(self, norm: Any) -> Tensor:
        """Give what `_at_unit` is multiplied by."""
        scales = norm.weight.detach() + self._one
        if self._cpu:
            return cast("Tensor", scales.float() * scales.shape[-1] ** 0.5)
        return cast("Tensor", scales.to(self._dtype))

    def _lay_out(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            norms = (attention.q_norm, attention.k_norm)
            counts = (self._groups * self._kv_heads, self._kv_heads)
            pairs = zip(norms, counts, strict=True)
            scales = [self._in_pairs(self._scales(norm)).expand(count, -1) for norm, count in pairs]
            head_norms = torch.cat(scales).to(self._held)
        return _Layer(
            attention_norm=self._scales(layer.input_layernorm),
            qkv=self._join((attention.q_proj, attention.k_proj, attention.v_proj), turned=2),
            head_norms=head_norms,
            output=self._join((attention.o_proj,)),
            mlp_norm=self._scales(layer.post_attention_layernorm),
            gate_up=self._join((mlp.gate_proj, mlp.up_proj)),
            down=self._join((mlp.down_proj,)),
        )

    def _join(self, layers: Sequence[nn.Linear], turned: int = 0) -> Matrix:
        """Make one matrix of linear layers; the outputs of the first ones will be rotated."""

        def joined(parts: Sequence[Tensor]) -> Tensor:
            ordered = [self._in_pairs(part) for part in parts[:turned]]
            return torch.cat([*ordered, *parts[turned:]])

        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        weight = joined([layer.weight.detach() for layer in layers])
        matrix = self._make(weight, joined(biases) if biases else None)
        if isinstance(matrix, PlainMatrix) and matrix.weight is weight:
            # The model's own weights become parts of the joined one, so that none is held twice.
            parts = torch.split(weight, [layer.out_features for layer in layers])
            for layer, part in list(zip(layers, parts, strict=True))[turned:]:
                layer.weight.data = part
        return matrix

    def _in_pairs(self, weight: Tensor) -> Tensor:
        """Reorder the rows of each head, (heads * D, ...): what turns together becomes a pair."""
        halves = weight.detach().view(-1, 2, self._head_dim // 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)

    def _rotations(self, rotary: Any, context: int) -> Tensor:
        """Turns of each position as complex numbers, (context, D/2)."""
        positions = torch.arange(context, device=self.device)[None]
        exact = torch.empty(0, dtype=torch.float32, device=self.device)
        cosine, sine = rotary(exact, positions)
        half = self._head_dim // 2
        return torch.complex(cosine[0, :, :half], sine[0, :, :half])
