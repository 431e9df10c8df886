"""The "transformers" backend: any Hugging Face family, run by transformers' own forward.

It supports causal models whose layers use full or sliding-window attention. The family's own code
runs all steps after the decoder (soft-capping, scaling, a bias), so `OutputHead` returns exactly
the columns of the full head. The backend shares the model's weights and does not change the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from liquidmm.errors import CheckpointError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


class TransformersBackend:
    """Runs a model with transformers' own code."""

    batch_invariant = False

    def __init__(self, model: PreTrainedModel) -> None:
        """Share the weights of a causal language model in eval mode.

        Raises:
            CheckpointError: The model has other layers, such as recurrent ones.
        """
        config = model.config.get_text_config(decoder=True)
        self._window: int | None = getattr(config, "sliding_window", None)
        default = ["full_attention" if self._window is None else "sliding_attention"]
        self._types = sorted(set(getattr(config, "layer_types", None) or default))
        if unknown := set(self._types) - _LAYER_TYPES:
            raise CheckpointError(
                f"model: layers of type {min(unknown)} have no cache here. "
                f"Use a model whose layers are {' or '.join(sorted(_LAYER_TYPES))}."
            )
        self._model = model
        self._heads: dict[tuple[int, int], OutputHead] = {}
        self._cache = SlotCache(config.num_hidden_layers)
        # Eager attention adds the mask to its scores; the sdpa kernels take a boolean mask.
        self._additive = config._attn_implementation != "sdpa"

    @property
    def device(self) -> torch.device:
        """Device that runs the model."""
        return self._model.device

    def reserve(self, slots: int, length: int) -> None:
        """See `Backend`."""
        self._cache.reserve(slots, length)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        """See `Backend`."""
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self._cache.prepare(first_slot, positions, kv_length)
        masks = {kind: self._mask(positions, kv_length, kind) for kind in self._types}
        output = self._model.base_model(
            input_ids=tokens,
            attention_mask=masks if len(masks) > 1 else masks[self._types[0]],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return cast("Tensor", output.last_hidden_state)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """See `Backend`."""
        key = (tokens.start, tokens.stop)
        if key not in self._heads:
            self._heads[key] = OutputHead(self._model, tokens)
        return self._heads[key](hidden)

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `Backend`."""
        self._cache.copy(source, targets, length)

    def _mask(self, positions: Tensor, kv_length: int, kind: str) -> Tensor:
        """Return the attention mask, (S, 1, T, kv_length)."""
        queries = positions[:, None, :, None]
        keys = torch.arange(kv_length, device=positions.device)
        visible = keys <= queries
        if kind == "sliding_attention" and self._window is not None:
            visible = visible & (keys > queries - self._window)
        if not self._additive:
            return visible
        dtype = self._model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )


class OutputHead:
    """Logits of a range of tokens from last hidden states, by the model's own code."""

    def __init__(self, model: PreTrainedModel, tokens: slice) -> None:
        """Create a view of a model with a linear head, which can be tied and have a bias."""
        full = cast("nn.Linear", model.get_output_embeddings())  # type: ignore[no-untyped-call]
        weight = full.weight.detach()[tokens]
        has_bias = full.bias is not None
        # Created on "meta" to avoid allocating a second weight before the shared one is set.
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        if has_bias:
            head.bias = nn.Parameter(full.bias.detach()[tokens], requires_grad=False)
        self._base = _FixedBase()
        self._view = copy.copy(model)
        self._view._modules = {**model._modules, model.base_model_prefix: self._base}
        self._view.set_output_embeddings(head)  # type: ignore[no-untyped-call]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map hidden states (N, D) to logits (N, V)."""
        self._base.hidden = hidden[:, None]
        # The input is ignored because the hidden states are known.
        tokens = torch.empty(hidden.shape[0], 1, dtype=torch.long, device="meta")
        logits = self._view(input_ids=tokens, use_cache=False).logits[:, -1]
        return cast("Tensor", logits)


class _FixedBase(nn.Module):
    """Replaces the base model and returns hidden states that are already known."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=cast("Any", self.hidden))


class SlotCache(Cache):
    """Keys and values of all layers, (slots, heads, length, D) each, as transformers' cache."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])
        self.shape = (0, 0)
        """Number of slots, and of positions per slot."""
        self.slots = slice(0, 0)
        """Slots of the current forward pass."""
        self.index: tuple[Any, ...] = ()
        """Where the pass writes keys and values."""
        self.kv_length = 0
        """Positions the pass attends to."""

    def reserve(self, slots: int, length: int) -> None:
        """Grow to this many slots of this length, keeping the contents."""
        self.shape = (max(slots, self.shape[0]), max(length, self.shape[1]))
        for layer in self._slot_layers():
            layer.grow()

    def prepare(self, first_slot: int, positions: Tensor, kv_length: int) -> None:
        """Set the positions that the next forward pass writes and reads."""
        self.slots = slice(first_slot, first_slot + positions.shape[0])
        slots = torch.arange(first_slot, self.slots.stop, device=positions.device)
        self.index = (slots[:, None], slice(None), positions)
        self.kv_length = kv_length

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of a slot to other slots."""
        for layer in self._slot_layers():
            for tensor in (layer.keys, layer.values):
                if tensor is not None:
                    tensor[list(targets), :, :length] = tensor[source, :, :length]

    def _slot_layers(self) -> list[_SlotLayer]:
        return cast("list[_SlotLayer]", self.layers)


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The cache of one layer."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    @torch.inference_mode()
    def grow(self) -> None:
        """Grow to the shape of the cache."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate keys and values of these shapes and dtypes."""
        self.keys, self.values = self._grown(key_states[:0]), self._grown(value_states[:0])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (S, heads, T, D) into the slots; return everything the pass attends to."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache = self._cache
        self.keys[cache.index] = key_states.transpose(1, 2)
        self.values[cache.index] = value_states.transpose(1, 2)
        part = (cache.slots, slice(None), slice(cache.kv_length))
        return self.keys[part], self.values[part]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that masks cover."""
        return self._cache.kv_length, 0

    def get_seq_length(self) -> int:
        """Return 0: slots have different lengths, and every pass sets its positions."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of positions per slot."""
        return self._cache.shape[1]

    def _grown(self, old: Tensor) -> Tensor:
        slots, length = self._cache.shape
        if (old.shape[0], old.shape[2]) == (slots, length):
            return old
        new = old.new_zeros(slots, old.shape[1], length, old.shape[3])
        new[: old.shape[0], :, : min(length, old.shape[2])] = old[:, :, :length]
        return new
