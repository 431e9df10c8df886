"""KV cache of the "cpu" and "torch" backends.

Each layer is one tensor, (slots, 2, kv_heads, length, D), keys first. The cache grows one layer at
a time, so at most one layer is in memory twice; growing moves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class KVCache:
    """The cache of one model, empty at first."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [
            torch.zeros(0, 2, kv_heads, 0, head_dim, dtype=dtype, device=device)
            for _ in range(layers)
        ]
        """Keys and values of each layer."""
        self.shape = (0, 0)
        """Number of slots, and of positions per slot."""

    def reserve(self, slots: int, length: int) -> None:
        """Grow to this many slots of this length, keeping the contents."""
        old_slots, old_length = self.shape
        self.shape = (max(slots, old_slots), max(length, old_length))
        if self.shape == (old_slots, old_length):
            return
        for index, old in enumerate(self.layers):
            _, two, heads, _, size = old.shape
            new = old.new_zeros(self.shape[0], two, heads, self.shape[1], size)
            new[:old_slots, :, :, :old_length] = old
            self.layers[index] = new

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of a slot to other slots."""
        for layer in self.layers:
            layer[list(targets), ..., :length, :] = layer[source, ..., :length, :]
