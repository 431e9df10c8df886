"""PackedSequence rows as tensors, and the one way the model is run over them.

Contract: documents packed into one row never see each other. The model gets position ids that start
anew with each of them, no mask and no cache; with either, transformers silently lets them mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.data.packing import PackedSequence
from liquidmm.train.loss import targets


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows of one step, on the device; all (B, T), int64."""

    input_ids: Tensor
    position_ids: Tensor
    target: Tensor
    task_ids: Tensor

    @classmethod
    def of(cls, rows: Sequence[PackedSequence], device: torch.device) -> Batch:
        """Stack packed rows and shift their labels."""

        def stack(name: str) -> Tensor:
            arrays = np.stack([getattr(row, name) for row in rows])
            return torch.from_numpy(arrays).long()

        position_ids = stack("position_ids")
        target = targets(stack("labels"), position_ids)
        values = (stack("input_ids"), position_ids, target, stack("task_ids"))
        ids, positions, target, tasks = (value.to(device) for value in values)
        return cls(input_ids=ids, position_ids=positions, target=target, task_ids=tasks)

    @property
    def labels(self) -> Tensor:
        """Number of positions that carry a label, a scalar."""
        return (self.target != IGNORE_INDEX).sum()

    def split(self, rows: int) -> Iterator[Batch]:
        """Cut into micro-batches of so many rows; 0 leaves it whole."""
        size = rows or len(self.input_ids)
        for start in range(0, len(self.input_ids), size):
            part = slice(start, start + size)
            yield Batch(
                input_ids=self.input_ids[part],
                position_ids=self.position_ids[part],
                target=self.target[part],
                task_ids=self.task_ids[part],
            )


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Run the decoder over packed rows.

    Args:
        model: Any causal language model of transformers.
        batch: Rows.

    Returns:
        Last hidden states, (B, T, D).
    """
    ids, positions = batch.input_ids, batch.position_ids
    if model.config._attn_implementation.startswith("flash_attention"):
        # Its kernels tell documents apart by their position ids in one row only.
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
    output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    states: Tensor = output.last_hidden_state
    return states.reshape(*batch.input_ids.shape, -1)
