"""Packed sequences as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.data.packing import PackedSequence
from liquidmm.files import atomic_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences of one step on the device; every tensor is (B, T), int64."""

    input_ids: Tensor
    position_ids: Tensor
    """Positions, restarting at 0 in every document of a sequence."""
    targets: Tensor
    """The next token of each position; `IGNORE_INDEX` where no loss is computed."""
    task_ids: Tensor

    @classmethod
    def from_sequences(cls, sequences: Sequence[PackedSequence], device: torch.device) -> Batch:
        """Stack packed sequences and shift their labels."""

        def stack(name: str) -> Tensor:
            arrays = np.stack([getattr(sequence, name) for sequence in sequences])
            return torch.from_numpy(arrays).long()

        position_ids = stack("position_ids")
        return cls(
            input_ids=stack("input_ids").to(device),
            position_ids=position_ids.to(device),
            targets=shift_labels(stack("labels"), position_ids).to(device),
            task_ids=stack("task_ids").to(device),
        )

    @property
    def num_targets(self) -> Tensor:
        """Number of positions with a target, a scalar."""
        return (self.targets != IGNORE_INDEX).sum()

    def split(self, size: int) -> Iterator[Batch]:
        """Split into micro-batches of ``size`` sequences; 0 yields the whole batch."""
        size = size or len(self.input_ids)
        for start in range(0, len(self.input_ids), size):
            part = slice(start, start + size)
            yield Batch(**{each.name: getattr(self, each.name)[part] for each in fields(self)})

    def save(self, path: Path, keys: Sequence[Sequence[str]]) -> None:
        """Write a safetensors file; its metadata has the record keys of each sequence as JSON.

        Raises:
            LiquidError: The file cannot be written.
        """
        tensors = {each.name: getattr(self, each.name).cpu().contiguous() for each in fields(self)}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, {"keys": json.dumps(keys)})


def shift_labels(labels: Tensor, position_ids: Tensor) -> Tensor:
    """Shift labels, (B, T), so that each position contains the next token of its document.

    Positions, (B, T), restart at 0 in every document; its last target, int64, is `IGNORE_INDEX`.
    """
    shifted = torch.full_like(labels, IGNORE_INDEX, dtype=torch.int64)
    shifted[:, :-1] = labels[:, 1:].masked_fill(position_ids[:, 1:] == 0, IGNORE_INDEX)
    return shifted
