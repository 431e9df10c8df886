"""The Muon optimizer with orthogonalization in a dtype that the device computes fast.

The updates are those of `torch.optim.Muon` (Jordan et al. 2024) with the learning rate scale of
AdamW (Liu et al. 2025, arXiv:2502.16982), except for rounding. PyTorch always orthogonalizes in
bfloat16. On a CPU without bfloat16 instructions, this takes about 15 times as long as float32 and
dominates the training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates; for matrices only."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"]
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(average, group["momentum"]))
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return approximately the nearest matrix with singular values of 1.

    Runs five Newton-Schulz iterations, in bfloat16 on an accelerator and in float32 on a CPU. The
    result has that dtype; its singular values are about 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide
