"""What the engine asks of a language model: rows of one preallocated key-value cache.

Contract: a row holds one sequence from position 0; rows have lengths of their own and run together
in one batch, and each gets what it would get alone. A pass takes the next ids of neighbouring rows,
writes their keys and values where each row ends, and gives their last hidden states. Who keeps the
lengths is the caller: what lies behind a row's length is never read, and is written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

Weights = Literal["float32", "bfloat16", "int8"]
"""How weights are held: as numbers of 32 or 16 bits, or as 8-bit integers with a scale for each
row."""


class Decoder(Protocol):
    """A language model and the cache it writes to."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def exact(self) -> bool:
        """Whether a row's results are the same bit for bit in passes of any size.

        Others are given round numbers of rows and ids: each number takes kernels of its own, whose
        sums are rounded in orders of their own, and which a device keeps.
        """

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many ids; what rows hold stays."""

    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        """Take the next ids of neighbouring rows.

        Args:
            ids: (R, T), int64.
            starts: Ids that each row holds already, (R,), int64.
            first: The first of the R rows.
            span: Positions that are attended to, at least the largest of ``starts`` plus T.

        Returns:
            Last hidden states, (R, T, D).
        """

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Map last hidden states (N, D) to the logits of some ids, (N, V)."""

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of a row to other rows."""


def context_of(model: PreTrainedModel) -> int:
    """Return how many ids a model can take in."""
    return int(model.config.get_text_config(decoder=True).max_position_embeddings)
