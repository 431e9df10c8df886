"""The "cpu" backend: Llama-like families in C (`llama.c`), limited only by memory bandwidth.

Activations are float32 for weights of any dtype. The results for a slot are bitwise equal for any
number of threads and any other slots. The weights are copied when the backend is created; later
changes to the model have no effect. Float32 weights whose values fit bfloat16, as in most published
models, are stored in 16 bits without loss.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from liquidmm.generate.backends.cache import KVCache
from liquidmm.generate.backends.cpu.ffi import (
    ACTIVATIONS,
    DTYPES,
    LANES,
    PANEL,
    ForwardArgs,
    Layer,
    Matrix,
    Model,
    address,
    find_library,
)
from liquidmm.generate.backends.llama import LlamaWeights


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return why `CpuBackend` cannot run a Llama-like model, or None if it can."""
    if model.device.type != "cpu":
        return f"it needs a CPU, not {model.device}"
    library = find_library()
    if isinstance(library, str):
        return f"the compiled library is not available: {library}"
    base: Any = model.base_model
    size: int = base.layers[0].self_attn.head_dim
    if size % LANES:
        return f"its head dimension is {size}, not a multiple of {LANES}"
    return None


class CpuBackend:
    """Runs a model for which `llama.unsupported_reason` and `unsupported_reason` are None."""

    device = torch.device("cpu")
    batch_invariant = True

    def __init__(
        self,
        model: PreTrainedModel,
        quantize: Literal["int8"] | None = None,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Pack the weights.

        Args:
            model: The model.
            quantize: Quantization of the weights; None keeps their dtype.
            library: The compiled `llama.c`; None loads the installed one.
        """
        found = library or find_library()
        assert not isinstance(found, str)
        self._library = found
        self._weights = weights = LlamaWeights.from_model(model)
        self._quantize = quantize
        self._kept: list[Tensor] = []
        """The tensors that the structures point to, except the cache."""
        self._layers = (Layer * len(weights.layers))(*map(self._make_layer, weights.layers))
        self._model = Model(
            layers=len(weights.layers),
            hidden=weights.hidden,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            head_dim=weights.head_dim,
            intermediate=weights.intermediate,
            activation=ACTIVATIONS[weights.activation],
            eps=weights.eps,
            scaling=weights.scaling,
            cosines=self._keep(weights.cosines),
            sines=self._keep(weights.sines),
            norm=self._norm_scales(weights.norm),
            layer=ctypes.addressof(self._layers),
        )
        self._heads: dict[tuple[int, int], Matrix] = {}
        layers, kv_heads, size = len(weights.layers), weights.kv_heads, weights.head_dim
        self._cache = KVCache(layers, kv_heads, size, torch.float32, self.device)

    @property
    def matrices(self) -> list[Matrix]:
        """The weights of all layers."""
        names = ("qkv", "output", "gate_up", "down")
        return [getattr(layer, name) for layer in self._layers for name in names]

    @torch.inference_mode()
    def reserve(self, slots: int, length: int) -> None:
        """See `Backend`."""
        self._cache.reserve(slots, length)
        for layer, cached in zip(self._layers, self._cache.layers, strict=True):
            layer.cache = address(cached)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        """See `Backend`."""
        slots, steps = tokens.shape
        last = int(starts.max()) + steps
        # The library does not check the bounds of its writes.
        max_slots, length = self._cache.shape
        assert first_slot + slots <= max_slots
        assert last <= min(kv_length, length, len(self._weights.cosines))
        weights, count = self._weights, slots * steps
        hidden = functional.embedding(tokens.reshape(-1), weights.table).float()
        if weights.embedding_scale is not None:
            hidden *= weights.embedding_scale
        threads = torch.get_num_threads()
        starts = starts.contiguous()
        width = weights.heads * weights.head_dim
        normed = torch.empty(count, weights.hidden)
        qkv = torch.empty(count, width + 2 * weights.kv_heads * weights.head_dim)
        attended = torch.empty(count, width)
        inner = torch.empty(count, weights.intermediate)
        scores = torch.empty(threads, length + LANES)
        tensors = (starts, hidden, normed, qkv, attended, inner, scores)
        args = ForwardArgs(slots, steps, first_slot, length, threads, *map(address, tensors))
        self._library.liquid_forward(byref(self._model), byref(args))
        return hidden.view(slots, steps, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """See `Backend`."""
        key = (tokens.start, tokens.stop)
        if key not in self._heads:
            head = self._weights.head
            bias = None if head.bias is None else head.bias.detach()[tokens]
            weight = head.weight.detach()[tokens]
            self._heads[key] = self._pack(_panels(weight), bias, len(weight))
        matrix = self._heads[key]
        x = hidden.contiguous()
        y = torch.empty(len(x), matrix.outputs)
        threads = torch.get_num_threads()
        self._library.liquid_matmul(byref(matrix), address(x), len(x), address(y), threads)
        return y

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `Backend`."""
        self._cache.copy(source, targets, length)

    def _make_layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        has_head_norms = hasattr(attention, "q_norm")
        return Layer(
            qkv=self._join(attention.q_proj, attention.k_proj, attention.v_proj),
            output=self._join(attention.o_proj),
            gate_up=self._alternate(mlp.gate_proj, mlp.up_proj),
            down=self._join(mlp.down_proj),
            attention_norm=self._norm_scales(layer.input_layernorm),
            mlp_norm=self._norm_scales(layer.post_attention_layernorm),
            query_norm=self._norm_scales(attention.q_norm) if has_head_norms else None,
            key_norm=self._norm_scales(attention.k_norm) if has_head_norms else None,
        )

    def _join(self, *layers: nn.Linear) -> Matrix:
        """Return one matrix with the outputs of linear layers in order."""
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        return self._pack(_panels(weight), torch.cat(biases) if biases else None, len(weight))

    def _alternate(self, *layers: nn.Linear) -> Matrix:
        """Return one matrix in which the panels of linear layers of equal size alternate."""
        weight = torch.stack([_panels(layer.weight.detach()) for layer in layers], dim=1)
        biases = [_panels(layer.bias.detach()) for layer in layers if layer.bias is not None]
        bias = torch.stack(biases, dim=1).flatten() if biases else None
        weight = weight.flatten(0, 1)
        return self._pack(weight, bias, len(weight) * PANEL)

    def _pack(self, panels: Tensor, bias: Tensor | None, outputs: int) -> Matrix:
        """Return the structure of a weight, (panels, K, PANEL), and its bias, (outputs,)."""
        scale = None
        if self._quantize == "int8":
            panels = panels.float()
            largest = panels.abs().amax(dim=1)
            scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
            panels = (panels / scale[:, None]).round().to(torch.int8)
        elif torch.equal(panels.bfloat16().to(panels.dtype), panels):
            panels = panels.bfloat16()
        return Matrix(
            weight=self._keep(panels),
            scale=None if scale is None else self._keep(scale),
            bias=None if bias is None else self._keep(bias.float()),
            outputs=outputs,
            inputs=panels.shape[1],
            dtype=DTYPES[panels.dtype],
        )

    def _norm_scales(self, norm: Any) -> int:
        return self._keep(self._weights.scales(norm).float())

    def _keep(self, tensor: Tensor) -> int:
        """Keep a tensor in memory; return its address."""
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


def _panels(weight: Tensor) -> Tensor:
    """Reorder (M, ...) to (panels, ..., PANEL), with zeros after the last output."""
    missing = -weight.shape[0] % PANEL
    padded = torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])])
    return padded.view(-1, PANEL, *weight.shape[1:]).movedim(1, -1).contiguous()
