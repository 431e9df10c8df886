"""The families written by hand, on a CPU, in C (`decode.c`): as fast as weights can be read.

Contract: that of `decoder.Decoder`. Activations are float32 whatever holds the weights, and what is
computed for a row is the same bit for bit with any number of threads and whatever the other rows
are. The weights are copied when the decoder is made; later changes of the model are not seen.
Weights that are numbers of 16 bits in truth, as most published ones are, are held as such, which
loses nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from liquidmm.generate.decoders.by_hand import Anatomy
from liquidmm.generate.decoders.cache import KeyValues
from liquidmm.generate.decoders.decoder import Weights
from liquidmm.generate.decoders.library import (
    ACTIVATIONS,
    KINDS,
    LANES,
    PANEL,
    Layer,
    Matrix,
    Model,
    Pass,
    address,
    find_library,
)


def why_not_native(model: PreTrainedModel) -> str | None:
    """Say why `NativeDecoder` can't run a model that is written by hand, or return None."""
    if model.device.type != "cpu":
        return f"it needs a CPU, not {model.device}"
    library = find_library()
    if isinstance(library, str):
        return f"liquidmm's own library is missing: {library}"
    base: Any = model.base_model
    size: int = base.layers[0].self_attn.head_dim
    if size % LANES:
        return f"its heads have {size} dimensions, which is no multiple of {LANES}"
    return None


class NativeDecoder:
    """The decoder of a family that is written by hand, on a CPU."""

    device = torch.device("cpu")
    exact = True

    def __init__(self, model: PreTrainedModel, weights: Weights) -> None:
        """Lay the weights out.

        Args:
            model: A model that `why_not_native` has nothing against.
            weights: How they are held.
        """
        library = find_library()
        assert not isinstance(library, str)
        self._library = library
        self._parts = parts = Anatomy.of(model)
        self._weights = weights
        self._held: list[Tensor] = []
        """Everything that the structures point into, but the cache."""
        self._layers = (Layer * len(parts.layers))(*map(self._lay_out, parts.layers))
        self._model = Model(
            layers=len(parts.layers),
            hidden=parts.hidden,
            heads=parts.heads,
            kv_heads=parts.kv_heads,
            head_dim=parts.head_dim,
            intermediate=parts.intermediate,
            activation=ACTIVATIONS[parts.activation],
            eps=parts.eps,
            scaling=parts.scaling,
            cosines=self._hold(parts.cosines),
            sines=self._hold(parts.sines),
            norm=self._scales(parts.norm),
            layer=ctypes.addressof(self._layers),
        )
        self._heads: dict[tuple[int, int], Matrix] = {}
        layers, kv_heads, size = len(parts.layers), parts.kv_heads, parts.head_dim
        self._cache = KeyValues(layers, kv_heads, size, torch.float32, self.device)

    @torch.inference_mode()
    def reserve(self, rows: int, length: int) -> None:
        """Make room; see `decoder.Decoder`."""
        self._cache.reserve(rows, length)
        for layer, held in zip(self._layers, self._cache.layers, strict=True):
            layer.cache = address(held)

    @torch.inference_mode()
    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        """Take the next ids of neighbouring rows; see `decoder.Decoder`."""
        rows, steps = ids.shape
        last = int(starts.max()) + steps
        # What the library writes to.
        most, length = self._cache.room
        assert first + rows <= most
        assert last <= min(span, length, len(self._parts.cosines))
        parts, count = self._parts, rows * steps
        hidden = functional.embedding(ids.reshape(-1), parts.table).float()
        if parts.embedding_scale is not None:
            hidden *= parts.embedding_scale
        threads = torch.get_num_threads()
        starts = starts.contiguous()
        width = parts.heads * parts.head_dim
        normed = torch.empty(count, parts.hidden)
        qkv = torch.empty(count, width + 2 * parts.kv_heads * parts.head_dim)
        attended = torch.empty(count, width)
        inner = torch.empty(count, parts.intermediate)
        scores = torch.empty(threads, length + LANES)
        tensors = (starts, hidden, normed, qkv, attended, inner, scores)
        which = Pass(rows, steps, first, length, threads, *map(address, tensors))
        self._library.liquid_forward(byref(self._model), byref(which))
        return hidden.view(rows, steps, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Map last hidden states to the logits of some ids; see `decoder.Decoder`."""
        key = (rows.start, rows.stop)
        if key not in self._heads:
            head = self._parts.head
            bias = None if head.bias is None else head.bias.detach()[rows]
            weight = head.weight.detach()[rows]
            self._heads[key] = self._matrix(_panels(weight), bias, len(weight))
        matrix = self._heads[key]
        x = hidden.contiguous()
        y = torch.empty(len(x), matrix.outputs)
        threads = torch.get_num_threads()
        self._library.liquid_multiply(byref(matrix), address(x), len(x), address(y), threads)
        return y

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy positions of a row to other rows; see `decoder.Decoder`."""
        self._cache.copy(source, targets, length)

    def _lay_out(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        normed = hasattr(attention, "q_norm")
        return Layer(
            qkv=self._joined(attention.q_proj, attention.k_proj, attention.v_proj),
            output=self._joined(attention.o_proj),
            gate_up=self._alternating(mlp.gate_proj, mlp.up_proj),
            down=self._joined(mlp.down_proj),
            attention_norm=self._scales(layer.input_layernorm),
            mlp_norm=self._scales(layer.post_attention_layernorm),
            query_norm=self._scales(attention.q_norm) if normed else None,
            key_norm=self._scales(attention.k_norm) if normed else None,
        )

    def _joined(self, *layers: nn.Linear) -> Matrix:
        """Make one matrix of linear layers, one's outputs behind another's."""
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        return self._matrix(_panels(weight), torch.cat(biases) if biases else None, len(weight))

    def _alternating(self, *layers: nn.Linear) -> Matrix:
        """Make one matrix of linear layers of equal size, whose panels take turns."""
        weight = torch.stack([_panels(layer.weight.detach()) for layer in layers], dim=1)
        biases = [_panels(layer.bias.detach()) for layer in layers if layer.bias is not None]
        bias = torch.stack(biases, dim=1).flatten() if biases else None
        weight = weight.flatten(0, 1)
        return self._matrix(weight, bias, len(weight) * PANEL)

    def _matrix(self, panels: Tensor, bias: Tensor | None, outputs: int) -> Matrix:
        """Hold a weight, (panels, K, PANEL), and its bias, (outputs,)."""
        scale = None
        if self._weights == "int8":
            panels = panels.float()
            largest = panels.abs().amax(dim=1)
            scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
            panels = (panels / scale[:, None]).round().to(torch.int8)
        elif self._weights == "bfloat16" or _is_short(panels):
            panels = panels.bfloat16()
        return Matrix(
            weight=self._hold(panels),
            scale=None if scale is None else self._hold(scale),
            bias=None if bias is None else self._hold(bias.float()),
            outputs=outputs,
            inputs=panels.shape[1],
            kind=KINDS[panels.dtype],
        )

    def _scales(self, norm: Any) -> int:
        return self._hold(self._parts.scales(norm).float())

    def _hold(self, tensor: Tensor) -> int:
        """Keep a tensor alive; return where it lies."""
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


def _panels(weight: Tensor) -> Tensor:
    """Reorder (M, ...) to (panels, ..., PANEL), with zeros behind the last output."""
    missing = -weight.shape[0] % PANEL
    padded = torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])])
    return padded.view(-1, PANEL, *weight.shape[1:]).movedim(1, -1).contiguous()


def _is_short(weight: Tensor) -> bool:
    """Say whether numbers of 16 bits hold a weight exactly."""
    return torch.equal(weight.bfloat16().to(weight.dtype), weight)
