"""The decoder of any Hugging Face family, run by transformers' own forward.

Contract: that of `decoder.Decoder`, for causal models whose layers attend to all positions or to a
sliding window of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from liquidmm.errors import CheckpointError
from liquidmm.generate.decoders.heads import FamilyHead

_TYPES = {"full_attention", "sliding_attention"}


class FamilyDecoder:
    """The decoder of any family, run by transformers' own code."""

    exact = False

    def __init__(self, model: PreTrainedModel) -> None:
        """Share the model's weights.

        Args:
            model: A causal language model in eval mode whose layers attend to all positions or to
                a sliding window of them.

        Raises:
            CheckpointError: It has layers of another kind, such as a recurrent state.
        """
        config = model.config.get_text_config(decoder=True)
        self._window: int | None = getattr(config, "sliding_window", None)
        one = ["full_attention" if self._window is None else "sliding_attention"]
        self._types = sorted(set(getattr(config, "layer_types", None) or one))
        if unknown := set(self._types) - _TYPES:
            raise CheckpointError(
                f"model: its layers are of the kind {min(unknown)}, which the engine has no cache "
                f"for. Use a model whose layers are {' or '.join(sorted(_TYPES))}."
            )
        self._model = model
        self._heads: dict[tuple[int, int], FamilyHead] = {}
        self._cache = RowCache(config.num_hidden_layers)
        # Eager attention adds the mask to its scores; the kernels of sdpa take a boolean one.
        self._additive = config._attn_implementation != "sdpa"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.device

    def reserve(self, rows: int, length: int) -> None:
        """Make room; see `Decoder`."""
        self._cache.reserve(rows, length)

    @torch.inference_mode()
    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        """Take the next ids of neighbouring rows; see `Decoder`."""
        positions = starts[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self._cache.place(first, positions, span)
        masks = {kind: self._mask(positions, span, kind) for kind in self._types}
        output = self._model.base_model(
            input_ids=ids,
            attention_mask=masks if len(masks) > 1 else masks[self._types[0]],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return cast("Tensor", output.last_hidden_state)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Map last hidden states to the logits of some ids; see `Decoder`."""
        key = (rows.start, rows.stop)
        if key not in self._heads:
            self._heads[key] = FamilyHead(self._model, rows)
        return self._heads[key](hidden)

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy positions of a row to other rows; see `Decoder`."""
        self._cache.copy(source, targets, length)

    def _mask(self, positions: Tensor, span: int, kind: str) -> Tensor:
        """Say what may be attended to, (R, 1, T, span)."""
        ends, keys = positions[:, None, :, None], torch.arange(span, device=positions.device)
        seen = keys <= ends
        if kind == "sliding_attention" and self._window is not None:
            seen = seen & (keys > ends - self._window)
        if not self._additive:
            return seen
        dtype = self._model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
            ~seen, torch.finfo(dtype).min
        )


class RowCache(Cache):
    """Keys and values of all layers, (rows, heads, length, D) each, in transformers' interface."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])
        self.room = (0, 0)
        """Rows, and positions of each."""
        self.rows = slice(0, 0)
        """Rows of the pass that is going on."""
        self.index: tuple[Any, ...] = ()
        """Where its keys and values are written."""
        self.span = 0
        """Positions it attends to."""

    def reserve(self, rows: int, length: int) -> None:
        """Make room; what rows hold stays."""
        self.room = (max(rows, self.room[0]), max(length, self.room[1]))
        for layer in self._row_layers():
            layer.grow()

    def place(self, first: int, positions: Tensor, span: int) -> None:
        """Say where the next pass writes and what it reads."""
        self.rows = slice(first, first + positions.shape[0])
        rows = torch.arange(first, self.rows.stop, device=positions.device)
        self.index = (rows[:, None], slice(None), positions)
        self.span = span

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy positions of a row to other rows."""
        for layer in self._row_layers():
            for held in layer.held():
                held[list(targets), :, :length] = held[source, :, :length]

    def _row_layers(self) -> list[_RowLayer]:
        return cast("list[_RowLayer]", self.layers)


class _RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's part."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def held(self) -> list[Tensor]:
        """Return keys and values, or nothing before the first pass."""
        return [part for part in (self.keys, self.values) if part is not None]

    @torch.inference_mode()
    def grow(self) -> None:
        """Take as much room as the cache says."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self._larger(self.keys), self._larger(self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take room for keys and values of these shapes and types."""
        self.keys, self.values = self._larger(key_states[:0]), self._larger(value_states[:0])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (R, heads, T, D) where the pass says; return all that it attends to."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache = self._cache
        self.keys[cache.index] = key_states.transpose(1, 2)
        self.values[cache.index] = value_states.transpose(1, 2)
        return self.keys[cache.rows, :, : cache.span], self.values[cache.rows, :, : cache.span]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the keys that masks cover."""
        return self._cache.span, 0

    def get_seq_length(self) -> int:
        """Return 0: rows have lengths of their own, and every pass says its positions."""
        return 0

    def get_max_length(self) -> int:
        """Return the positions of a row."""
        return self._cache.room[1]

    def _larger(self, old: Tensor) -> Tensor:
        rows, length = self._cache.room
        if (old.shape[0], old.shape[2]) == (rows, length):
            return old
        new = old.new_zeros(rows, old.shape[1], length, old.shape[3])
        new[: old.shape[0], :, : min(length, old.shape[2])] = old[:, :, :length]
        return new
