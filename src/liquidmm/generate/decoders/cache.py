"""Keys and values of the decoders written by hand.

Contract: one tensor for each layer, (rows, 2, kv_heads, length, D), keys and then values. It grows
without loss, one layer at a time, so that no more than a layer is held twice; then it has moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class KeyValues:
    """The cache of one model, empty at first."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [
            torch.zeros(0, 2, kv_heads, 0, head_dim, dtype=dtype, device=device)
            for _ in range(layers)
        ]
        """What each layer holds."""
        self.room = (0, 0)
        """Rows, and positions of each."""

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many ids; what rows hold stays."""
        held = self.room
        self.room = (max(rows, held[0]), max(length, held[1]))
        if self.room == held:
            return
        for place, old in enumerate(self.layers):
            _, two, heads, _, size = old.shape
            new = old.new_zeros(self.room[0], two, heads, self.room[1], size)
            new[: held[0], :, :, : held[1]] = old
            self.layers[place] = new

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of a row to other rows."""
        for held in self.layers:
            held[list(targets), ..., :length, :] = held[source, ..., :length, :]
