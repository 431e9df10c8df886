"""Optimizers, learning rate schedule and gradient clipping.

AdamW always updates norms, biases, stacks of experts and embedding tables (including tied heads and
separately trained rows), without weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn
from transformers import PreTrainedModel

from liquidmm.ranges import RangeChecked
from liquidmm.train.distributed import full_tensor
from liquidmm.train.lora import is_new_rows, unwrap
from liquidmm.train.muon import Muon


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(RangeChecked):
    """Optimizer, schedule and stabilizers."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "matrices": "optimizer",
        "warmup": "warmup_steps",
        "clip": "grad_clip",
        "max_z": "max_z_loss",
    }

    lr: Annotated[float, Gt(0)] = 2e-5
    """Peak learning rate (paper: 2e-5 for a 7B model). Small models from scratch: about 1e-3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warmup."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps of linear warmup from 0."""
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Final learning rate of the cosine, as a fraction of ``lr``."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer for the matrices. Muon orthogonalizes updates (Jordan et al. 2024) and scales them
    so that the learning rates of AdamW apply (Liu et al. 2025, arXiv:2502.16982). It works better
    for small models trained from scratch."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay for the matrices."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.95)
    """AdamW betas."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """AdamW epsilon."""
    grad_clip: Annotated[float, Ge(0)] = 0.5
    """Maximum gradient norm (paper: 0.5); 0 disables clipping."""
    max_z_loss: Annotated[float, Ge(0)] = 2e-4
    """Weight of the squared largest logit (paper: 2e-4); 0 disables it."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared log-sum-exp; 0 disables it."""


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate after ``step`` of ``steps`` steps.

    The last warmup step has the peak rate; the cosine ends right after the last step.
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

    Returns:
        The matrices of the blocks and an untied head; then embedding tables and all parameters that
        do not have two dimensions.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for name, parameter in model.named_parameters():  # yields a tied head once
        if parameter.requires_grad:
            plain = parameter.dim() != 2 or id(parameter) in tables or is_new_rows(name)
            (rest if plain else matrices).append(parameter)
    return matrices, rest


def build_optimizers(model: PreTrainedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Create the optimizers of a run; together they contain every trainable parameter once.

    Returns:
        One AdamW, fused where the device supports it; with ``optimizer = "muon"``, a Muon for the
        matrices of the blocks comes first.
    """
    decayed, rest = split_parameters(model)
    head = id(unwrap(model.get_output_embeddings()).weight)  # type: ignore[no-untyped-call]
    blocks = [parameter for parameter in decayed if id(parameter) != head]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon" and blocks:
        optimizers.append(Muon(blocks, config.lr, config.weight_decay))
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


def clip_gradients(optimizers: Sequence[torch.optim.Optimizer], max_norm: float) -> float:
    """Clip the gradients to a norm over all ranks; 0 disables clipping.

    Returns:
        The norm before clipping; NaN or infinite if any gradient is.
    """
    parameters = [each for optimizer in optimizers for each in parameters_of(optimizer)]
    return float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_step(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Update the weights at a learning rate and clear the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
