"""The VQGAN of taming-transformers as used by Chameleon and Liquid.

It maps pixels (B, 3, H, W) in [-1, 1] to codes (B, h, w) in 0..codebook_size-1 and back, where h
and w are H and W divided by the downsampling factor. A code is the index of the codebook vector
nearest to a latent by Euclidean distance, always computed in float32. Parameters have taming's
names, so published weights load by name.

Sources: Esser et al. 2021 (arXiv:2012.09841); Chameleon (arXiv:2405.09818) for the defaults.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional

from liquidmm.errors import ConfigError
from liquidmm.ranges import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANConfig:
    """Shape of a VQGAN; the defaults are Chameleon's."""

    resolution: Annotated[int, Ge(1)] = 512
    """Width and height of the training images in pixels; any other multiple of the downsampling
    factor works too."""
    in_channels: Annotated[int, Ge(1)] = 3
    """Color channels of input and output."""
    base_channels: Annotated[int, Ge(1)] = 128
    """Channels at full resolution."""
    channel_multipliers: tuple[Annotated[int, Ge(1)], ...] = (1, 1, 2, 2, 4)
    """Channels of each level, in ``base_channels``; all levels but the last halve the size."""
    num_res_blocks: Annotated[int, Ge(1)] = 2
    """Residual blocks of each encoder level; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Sizes in pixels, at ``resolution``, of levels with attention; the middle always has it."""
    latent_channels: Annotated[int, Ge(1)] = 256
    """Channels between encoder or decoder and the 1x1 convolutions of the quantizer."""
    code_dim: Annotated[int, Ge(1)] = 256
    """Length of a codebook vector."""
    codebook_size: Annotated[int, Ge(1)] = 8192
    """Number of codebook vectors."""
    norm_groups: Annotated[int, Ge(1)] = 32
    """Maximum number of normalization groups; published models use 32. Narrow models need fewer:
    with one channel per group, every layer loses the mean colors of the image."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.channel_multipliers:
            raise ConfigError("channel_multipliers: is empty. Add at least one.")
        if self.resolution % self.downsample_factor:
            raise ConfigError(
                f"resolution: expected a multiple of the downsampling factor "
                f"{self.downsample_factor}, got {self.resolution}."
            )

    @property
    def downsample_factor(self) -> int:
        """Pixels per code along each side."""
        return int(2 ** (len(self.channel_multipliers) - 1))


class Quantizer(nn.Module):
    """The codebook and the search for the nearest vector in it."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def nearest(self, vectors: Tensor, chunk: int = 16384) -> Tensor:
        """Map vectors (N, D) to the nearest of the codebook, (N,), int64.

        Of two at equal distance it is the lower one. Searching ``chunk`` vectors at once limits the
        memory to chunk x K floats.
        """
        codebook = self.embedding.weight.float()
        half_norms = codebook.square().sum(1).mul(0.5)  # (K,)
        # |z - e|^2 / 2 without the |z|^2 term, which is the same for all codes.
        return torch.cat(
            [
                torch.addmm(half_norms, part, codebook.t(), alpha=-1.0).argmin(1)
                for part in torch.split(vectors.float(), chunk)
            ]
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize latents (B, D, h, w) for training.

        Returns:
            The nearest vectors, (B, D, h, w), float32, with straight-through gradients to the
            latents; their codes, (B, h, w), int64; and the commitment loss, the mean squared
            distance, whose gradient reaches only the latents.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            batch, dim, height, width = latents.shape
            flat = latents.permute(0, 2, 3, 1).reshape(-1, dim)
            codes = self.nearest(flat.detach()).view(batch, height, width)
            chosen = self.lookup(codes)
            commitment = functional.mse_loss(latents, chosen.detach())
            return latents + (chosen - latents).detach(), codes, commitment

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to their vectors, (B, D, h, w)."""
        vectors: Tensor = self.embedding(codes)
        return vectors.permute(0, 3, 1, 2)


def _silu(x: Tensor) -> Tensor:
    # x is always a new output of a normalization, so without gradients it can be overwritten.
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    # The largest number of groups up to the limit that divides the channels.
    fitting = max(g for g in range(1, groups + 1) if channels % g == 0)
    return nn.GroupNorm(fitting, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        widens = channels != out_channels
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        h: Tensor = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        shortcut: Tensor = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return h + shortcut if torch.is_grad_enabled() else h.add_(shortcut)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        h = self.norm(x)
        q, k, v = (
            layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v)
        )  # (B, 1, HW, C)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        mixed = mixed.squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj_out(mixed)
        return x + out


class Downsample(nn.Module):
    """Halves width and height; pads only on the right and bottom, as in taming."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles width and height by repeating pixels, then applies a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Level(nn.Module):
    """The blocks of one resolution, followed by resampling if there is any."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, groups: int, *, attention: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(channels if index == 0 else out_channels, out_channels, groups)
            for index in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, groups) for _ in range(blocks * attention)
        )
        # The encoder or the decoder sets one of them; the names are taming's.
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the level's channels and, after resampling, size."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Encoder(nn.Module):
    """Maps pixels to latents."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        channels, side = config.base_channels, config.resolution
        blocks, groups = config.num_res_blocks, config.norm_groups
        for index, width in enumerate(widths):
            attention = side in config.attention_resolutions
            level = Level(channels, width, blocks, groups, attention=attention)
            if index < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
            channels, side = width, side // 2
        self.mid = Middle(channels, config.norm_groups)
        self.norm_out = _norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, latent_channels, h, w)."""
        x: Tensor = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(_silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Maps latents to pixels."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config.norm_groups)
        blocks, groups = config.num_res_blocks + 1, config.norm_groups
        levels = []
        for index in reversed(range(len(widths))):
            attention = config.resolution // 2**index in config.attention_resolutions
            level = Level(channels, widths[index], blocks, groups, attention=attention)
            if index > 0:
                level.upsample = Upsample(widths[index])
            levels.append(level)
            channels = widths[index]
        # taming numbers the levels from fine to coarse, although they run from coarse to fine.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Map (B, latent_channels, h, w) to (B, 3, H, W)."""
        x: Tensor = self.mid(self.conv_in(latents))
        for index in reversed(range(len(self.up))):
            x = self.up[index](x)
        out: Tensor = self.conv_out(_silu(self.norm_out(x)))
        return out


class VQGAN(nn.Module):
    """Encoder, quantizer and decoder; with ``decoder=False`` it can only encode."""

    def __init__(self, config: VQGANConfig, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if decoder else None
        self.quantize = Quantizer(config.codebook_size, config.code_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)

    def encode_latents(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to latents before quantization, (B, D, h, w)."""
        latents: Tensor = self.quant_conv(self.encoder(pixels))
        return latents

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to codes, (B, h, w), int64."""
        return self.nearest(self.encode_latents(pixels))

    def nearest(self, latents: Tensor) -> Tensor:
        """Map latents (B, D, h, w) to codes, (B, h, w), int64."""
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return self.quantize.nearest(flat).view(latents.shape[0], *latents.shape[2:])

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """Map codebook vectors (B, D, h, w) to pixels, (B, 3, H, W), not clamped."""
        if self.decoder is None:
            raise RuntimeError("vqgan: has no decoder. Load weights that have one.")
        pixels: Tensor = self.decoder(self.post_quant_conv(quantized))
        return pixels

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to pixels, (B, 3, H, W), not clamped."""
        return self.decode_latents(self.quantize.lookup(codes))
