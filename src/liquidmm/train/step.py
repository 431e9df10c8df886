"""One optimizer step: gradients of its rows in parts, the norm, the update.

Contract: the gradient is that of the mean over all labels of the step, whatever the parts and
ranks. Between `gradients` and `update` nothing has changed yet, so a step can still be given up.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from liquidmm.data.examples import TASKS
from liquidmm.train.batch import Batch
from liquidmm.train.distributed import Distributed, synchronize_gradients, whole
from liquidmm.train.metrics import LossMeter
from liquidmm.train.model import LiquidForTraining
from liquidmm.train.optim import OptimConfig, build_optimizers


class Stepper:
    """A trainee and its optimizers."""

    def __init__(
        self,
        trainee: LiquidForTraining,
        optim: OptimConfig,
        world: Distributed,
        *,
        part_rows: int = 0,
        grad_accumulation: Literal["full", "sharded"] = "full",
    ) -> None:
        """Make the optimizers.

        Args:
            trainee: What is trained, on its device.
            optim: Optimizers and clipping.
            world: The ranks.
            part_rows: Rows computed at a time; 0 computes all at once.
            grad_accumulation: See `ParallelConfig`.
        """
        self.trainee = trainee
        self.optimizers = build_optimizers(trainee.model, optim)
        self._groups = [group for each in self.optimizers for group in each.param_groups]
        self._parameters = [weight for group in self._groups for weight in group["params"]]
        self._clip = optim.grad_clip or math.inf
        self._world = world
        self._part_rows = part_rows
        self._accumulate = grad_accumulation

    def gradients(self, batch: Batch, labels: int, tally: LossMeter) -> float:
        """Compute the gradients of a step.

        Args:
            batch: This rank's rows.
            labels: Labelled positions of the step, on all ranks.
            tally: Adds up what the loss counts.

        Returns:
            The norm before clipping, of all ranks; no number where the step must be given up.
        """
        parts = list(batch.split(self._part_rows))
        for part in parts:
            last = part is parts[-1] or self._accumulate == "sharded"
            synchronize_gradients(self.trainee, last=last)
            result = self.trainee(part, len(TASKS), labels)
            # Sharding averages over the ranks what is to be added up.
            (result.loss * self._world.size).backward()
            tally.add(result)
        return float(whole(nn.utils.clip_grad_norm_(self._parameters, self._clip)))

    def update(self, rate: float) -> None:
        """Move the weights at a learning rate, and forget the gradients."""
        for group in self._groups:
            group["lr"] = rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
