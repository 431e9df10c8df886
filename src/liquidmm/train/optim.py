"""AdamW for decoders, and learning rates as pure functions of the step.

Contract: nothing here keeps state besides the optimizer itself. What has one dimension (norms,
biases) and the embedding table, with a head tied to it, isn't decayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer, schedule and stabilizers."""

    lr: float = 2e-5
    """Largest learning rate; the paper's for a 7B base. A small model from scratch takes 1e-3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup: int = 0
    """Steps of linear warm-up from 0."""
    min_lr_ratio: float = 0.0
    """Where the cosine ends, as a part of ``lr``."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's two averages."""
    eps: float = 1e-8
    """Adam's denominator."""
    clip: float = 0.5
    """Largest gradient norm (paper: 0.5); 0 never clips."""
    max_z: float = 2e-4
    """Weight of the squared largest logit (paper: 2e-4); 0 leaves it out."""
    z_loss: float = 0.0
    """Weight of the squared log-sum-exp; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: must be above 0 ({self.lr}).")
        for name in ("warmup", "weight_decay", "clip", "max_z", "z_loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or more ({getattr(self, name)}).")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio: must be from 0 to 1 ({self.min_lr_ratio}).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: must be from 0 to below 1 ({self.betas}).")
        if not self.eps > 0:
            raise ValueError(f"eps: must be above 0 ({self.eps}).")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Give the learning rate of one step.

    Args:
        step: Steps done before this one, from 0.
        steps: Steps of the whole run.
        config: Peak, schedule and warm-up.

    Returns:
        The rate; the last step of the warm-up has the full one, and the cosine would reach its
        smallest one right after the last step.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    ratio = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * ratio


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into decayed and undecayed ones.

    Args:
        model: The decoder; frozen parameters are left out.
        weight_decay: Decay of the first group.

    Returns:
        Two groups for an optimizer.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    tables = {id(parameter) for parameter in _tables(model)}
    for parameter in model.parameters():  # a tied head appears once
        if parameter.requires_grad:
            plain = parameter.dim() < 2 or id(parameter) in tables
            (undecayed if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def build_optimizer(model: PreTrainedModel, config: OptimConfig) -> torch.optim.AdamW:
    """Make the optimizer of a run.

    Args:
        model: The decoder, on its device.
        config: Rate, decay and averages.

    Returns:
        AdamW, fused where the device has it.
    """
    fused = next(model.parameters()).device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


def _tables(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield cast("nn.Parameter", module.weight)
