"""Optimizer and learning rate of the image tokenizer's training.

Contract: pure functions of the run's settings and the step.
"""

import math

import torch
from torch import nn

from liquidmm.image_tokenizer.training.config import TokenizerLoopConfig

_FLOOR = 0.05


def learning_rate(step: int, config: TokenizerLoopConfig) -> float:
    """Give the learning rate of a step: linear warm-up, then cosine to a twentieth of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    share = min(1.0, (step - config.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * share))
    return config.learning_rate * (_FLOOR + (1.0 - _FLOOR) * cosine)


def adamw(model: nn.Module, config: TokenizerLoopConfig) -> torch.optim.Optimizer:
    """Make AdamW for all parameters with gradients; vectors (norms, biases) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
