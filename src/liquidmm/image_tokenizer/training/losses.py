"""Reconstruction losses on pixels (B, 3, H, W) in [-1, 1].

Sources: LPIPS, Zhang et al. 2018 (arXiv:1801.03924); patch discriminator, hinge loss and adaptive
weight, Esser et al. 2021 (arXiv:2012.09841).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquidmm.errors import CheckpointError
from liquidmm.image_tokenizer.pretrained import read_tensors
from liquidmm.image_tokenizer.training.config import ImageLossConfig

# Widths of VGG16's convolutions; "M" halves width and height. LPIPS reads the features before it.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
_WIDTHS = (64, 128, 256, 512, 512)
_MEAN = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def pixel_loss(config: ImageLossConfig, target: Tensor, made: Tensor) -> Tensor:
    """Return the weighted sum of the absolute, squared, edge and color errors, a scalar."""
    error = made.float() - target
    loss = config.l1 * error.abs().mean() + config.l2 * error.square().mean()
    if config.edges:
        across = error[..., :, 1:] - error[..., :, :-1]
        down = error[..., 1:, :] - error[..., :-1, :]
        loss = loss + config.edges * (across.abs().mean() + down.abs().mean())
    if config.chroma:
        loss = loss + config.chroma * (error - error.mean(1, keepdim=True)).abs().mean()
    return loss


class LPIPS(nn.Module):
    """The learned perceptual distance on VGG16 features, with fixed weights."""

    def __init__(self, vgg16: Mapping[str, Tensor], linear: Mapping[str, Tensor] | None) -> None:
        """Load the weights.

        Args:
            vgg16: ``features.N.weight`` and ``features.N.bias`` of torchvision's VGG16.
            linear: ``lin0.model.1.weight`` ... of the lpips package's vgg.pth; None weights all
                channels of a layer equally.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        super().__init__()
        self.features = nn.Sequential(*_vgg_layers())
        state = {}
        for name, value in self.features.state_dict().items():
            found = vgg16.get(f"features.{name}")
            if found is None or found.shape != value.shape:
                raise CheckpointError(
                    f"vgg16: features.{name} is missing or not {tuple(value.shape)}. Use "
                    "torchvision's vgg16-397923af.pth (BSD-3-Clause)."
                )
            state[name] = found.float()
        self.features.load_state_dict(state)
        self.taps = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        for index, width in enumerate(_WIDTHS):
            weight = torch.full((1, width, 1, 1), 1.0 / width)
            if linear is not None:
                given = linear.get(f"lin{index}.model.1.weight")
                if given is None or given.shape != weight.shape:
                    raise CheckpointError(
                        f"lpips_linear: lin{index}.model.1.weight is missing or not "
                        f"{tuple(weight.shape)}. Use the lpips package's weights/v0.1/vgg.pth "
                        "(BSD-2-Clause)."
                    )
                weight = given.float()
            self.register_buffer(f"lin{index}", weight)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, target: Tensor, made: Tensor) -> Tensor:
        """Return the mean distance between two batches of images of at least 16 x 16, a scalar."""
        both = torch.cat([target, made.float()]).sub(self.get_buffer("mean"))
        both = both.div(self.get_buffer("scale"))
        total = target.new_zeros(())
        tap = 0
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                unit = both * torch.rsqrt(both.square().sum(1, keepdim=True) + 1e-10)
                a, b = unit.chunk(2)
                weight = self.get_buffer(f"lin{tap}")
                total = total + ((a - b).square() * weight).sum(1).mean()
                tap += 1
            if tap < len(self.taps):
                both = layer(both)
        return total


def load_lpips(config: ImageLossConfig, device: torch.device) -> LPIPS | None:
    """Load the perceptual distance from the configured files; return None if it is disabled.

    Raises:
        CheckpointError: A file is missing or contains other weights.
    """
    if not config.lpips or config.vgg16 is None:
        return None
    trunk = read_tensors(config.vgg16, "torchvision's VGG16 weights (BSD-3-Clause)")
    linear = None
    if config.lpips_linear is not None:
        linear = read_tensors(config.lpips_linear, "LPIPS's channel weights (BSD-2-Clause)")
    return LPIPS(trunk, linear).to(device)


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG16:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


class PatchDiscriminator(nn.Module):
    """Scores how real each patch of an image looks."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            wider = channels * min(2**index, 8)
            stride = 2 if index < layers else 1
            parts += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                # Group norm instead of taming's batch norm, which depends on the batch size.
                nn.GroupNorm(math.gcd(8, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        parts.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*parts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) to scores, (B, 1, h, w); high means real."""
        scores: Tensor = self.main(pixels)
        return scores


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return the discriminator's loss from its scores for real and reconstructed images."""
    return 0.5 * (functional.relu(1.0 - real).mean() + functional.relu(1.0 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the ratio of two losses' gradient norms at the last layer, detached, in [0, 1e4]."""
    (ours,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight: Tensor = ours.norm() / (theirs.norm() + 1e-4)
    return weight.clamp(0.0, 1e4).detach()
