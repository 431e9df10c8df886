"""Trainable parameters, optimizer and learning rate of an image tokenizer."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from liquidmm.image_tokenizer.training.config import Part, TokenizerLoopConfig
from liquidmm.image_tokenizer.vqgan import VQGAN

_MIN_LR_RATIO = 0.05


def freeze_parts(model: VQGAN, frozen: Sequence[Part]) -> None:
    """Set a model to training mode, with gradients for all parts except the frozen ones."""
    model.requires_grad_(True).train()
    # Moving averages, never gradients, train the codebook.
    model.quantize.requires_grad_(False)
    if "encoder" in frozen:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    if "decoder" in frozen and model.decoder is not None:
        model.decoder.requires_grad_(False)
        model.post_quant_conv.requires_grad_(False)


def learning_rate(step: int, config: TokenizerLoopConfig) -> float:
    """Return the learning rate of a step: linear warmup, then a cosine to a twentieth of it."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (_MIN_LR_RATIO + (1.0 - _MIN_LR_RATIO) * cosine)


def adamw(model: nn.Module, config: TokenizerLoopConfig) -> torch.optim.Optimizer:
    """Create AdamW for all parameters with gradients; norms and biases have no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
