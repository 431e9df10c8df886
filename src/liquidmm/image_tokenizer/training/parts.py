"""The parts that an image tokenizer's training starts from.

Contract: reads the files that the run names (an earlier tokenizer, the perceptual trunk) and
decides which parameters are trained.
"""

import torch

from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.pretrained import read_tensors
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.image_tokenizer.training.config import ImageLossConfig, TrainTokenizerConfig
from liquidmm.image_tokenizer.training.losses import LPIPS
from liquidmm.image_tokenizer.vqgan import VQGAN


def start_model(run: TrainTokenizerConfig) -> VQGAN:
    """Make the model of step 0: ``init_from``, or random weights from the global generator.

    Raises:
        ConfigError: ``init_from`` has another shape or no decoder.
    """
    if run.init_from is None:
        return VQGAN(run.vqgan)
    model = load_image_tokenizer(run.init_from).model
    if model.config != run.vqgan:
        raise ConfigError(
            f"vqgan: the shape differs from that of init_from {run.init_from} "
            f"({model.config}). Write the same shape into the run file."
        )
    if model.decoder is None:
        raise ConfigError(f"init_from: {run.init_from} has no decoder. Give a whole tokenizer.")
    return model


def freeze(model: VQGAN, run: TrainTokenizerConfig) -> None:
    """Put a model into training mode with gradients on all parts but the frozen ones."""
    model.requires_grad_(True).train()
    # The codebook moves by averages, never by gradients.
    model.quantize.requires_grad_(False)
    parts = {
        "encoder": (model.encoder, model.quant_conv),
        "decoder": (model.decoder, model.post_quant_conv),
        "codebook": (),
    }
    for name in run.freeze:
        for module in parts[name]:
            if module is not None:
                module.requires_grad_(False)


def load_lpips(config: ImageLossConfig, device: torch.device) -> LPIPS | None:
    """Read the perceptual distance from the files the run names; None if it is switched off.

    Raises:
        CheckpointError: A file is missing or holds other weights.
    """
    if not config.lpips or config.vgg16 is None:
        return None
    trunk = read_tensors(config.vgg16, "torchvision's VGG16 weights (BSD-3-Clause)")
    linear = None
    if config.lpips_linear is not None:
        linear = read_tensors(config.lpips_linear, "LPIPS's channel weights (BSD-2-Clause)")
    return LPIPS(trunk, linear).to(device)
