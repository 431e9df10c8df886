"""Optimizers for decoders, and learning rates as pure functions of the step.

Contract: nothing here keeps state besides the optimizers themselves. What is no matrix (norms,
biases, stacks of experts) and the embedding table, with a head tied to it or rows of it that are
trained apart, isn't decayed and always moved by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError
from liquidmm.train.lora import is_new_rows, unwrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimizer, schedule and stabilizers."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "matrices": "optimizer",
        "warmup": "warmup_steps",
        "clip": "grad_clip",
        "max_z": "max_z_loss",
    }

    lr: float = 2e-5
    """Largest learning rate; the paper's for a 7B base. A small model from scratch takes 1e-3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    min_lr_ratio: float = 0.0
    """Where the cosine ends, as a part of ``lr``."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What moves the matrices. Muon orthogonalizes their updates (Jordan et al. 2024), scaled so
    that AdamW's rates fit (Liu et al. 2025, arXiv:2502.16982); better for small models from
    scratch."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's two averages."""
    eps: float = 1e-8
    """Adam's denominator."""
    grad_clip: float = 0.5
    """Largest gradient norm (paper: 0.5); 0 never clips."""
    max_z_loss: float = 2e-4
    """Weight of the squared largest logit (paper: 2e-4); 0 leaves it out."""
    z_loss: float = 0.0
    """Weight of the squared log-sum-exp; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr: must be above 0 ({self.lr}).")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "max_z_loss", "z_loss"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more ({getattr(self, name)}).")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"min_lr_ratio: must be from 0 to 1 ({self.min_lr_ratio}).")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: must be from 0 to below 1 ({self.betas}).")
        if not self.eps > 0:
            raise ConfigError(f"eps: must be above 0 ({self.eps}).")


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
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    ratio = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * ratio


def split_parameters(model: PreTrainedModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into matrices and the rest.

    Args:
        model: The decoder; frozen parameters are left out.

    Returns:
        The matrices of the blocks and an untied head; then embedding tables and all that has
        another number of dimensions.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    tables = {id(parameter) for parameter in _tables(model)}
    for name, parameter in model.named_parameters():  # a tied head appears once
        if parameter.requires_grad:
            plain = parameter.dim() != 2 or id(parameter) in tables or is_new_rows(name)
            (rest if plain else matrices).append(parameter)
    return matrices, rest


def build_optimizers(model: PreTrainedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a run; together they hold every trainable parameter once.

    Args:
        model: The decoder, on its device.
        config: Kind, rate, decay and averages.

    Returns:
        One AdamW, fused where the device has it; with ``optimizer = "muon"`` a Muon for the
        matrices of the blocks before it.
    """
    decayed, rest = split_parameters(model)
    head = id(unwrapped(model.get_output_embeddings()).weight)  # type: ignore[no-untyped-call]
    blocks = [parameter for parameter in decayed if id(parameter) != head]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon" and blocks:
        muon = torch.optim.Muon(
            blocks, config.lr, config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
        decayed = [parameter for parameter in decayed if id(parameter) == head]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        device = next(model.parameters()).device.type
        adamw = torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=device in ("cpu", "cuda", "mps"),
        )
        optimizers.append(adamw)
    return optimizers


def _tables(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield cast("nn.Parameter", module.weight)
