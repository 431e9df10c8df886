"""One training step of a VQGAN: generator, discriminator, codebook and averaged weights.

Every random choice depends only on the seed and the step, so a resumed run is exact.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.images import to_float
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.image_tokenizer.training.codebook import MovingCodebook, kmeans
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
from liquidmm.image_tokenizer.training.losses import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
    load_lpips,
    pixel_loss,
)
from liquidmm.image_tokenizer.training.optim import adamw, freeze_parts, learning_rate
from liquidmm.image_tokenizer.vqgan import VQGAN
from liquidmm.runtime import generator


def initial_model(run: TrainTokenizerConfig) -> VQGAN:
    """Return ``init_from``, or a model with random weights from the global generator.

    Raises:
        ConfigError: ``init_from`` has another shape or no decoder.
    """
    if run.init_from is None:
        return VQGAN(run.vqgan)
    model = load_image_tokenizer(run.init_from).model
    if model.config != run.vqgan:
        raise ConfigError(
            f"vqgan: expected the shape of init_from {run.init_from} ({model.config}), got "
            f"{run.vqgan}. Use the same shape."
        )
    if model.decoder is None:
        raise ConfigError(f"init_from: {run.init_from} has no decoder. Use a complete tokenizer.")
    return model


class _Output(NamedTuple):
    """Results of one forward pass."""

    latents: Tensor
    """Before quantization, (B, D, h, w)."""
    codes: Tensor | None
    """(B, h, w); None during the warmup of the codebook."""
    commitment: Tensor
    """Commitment loss, a scalar."""
    pixels: Tensor
    """The reconstruction, (B, 3, H, W), float32."""


class _Adversary:
    """The discriminator and its optimizer."""

    def __init__(self, run: TrainTokenizerConfig, model: PatchDiscriminator) -> None:
        self.model = model
        self.optimizer = adamw(model, run.train)
        self.weight = run.loss.adversarial

    def generator_loss(self, reconstruction: Tensor, made: Tensor, last_layer: Tensor) -> Tensor:
        self.model.requires_grad_(False)
        loss: Tensor = -self.model(made).mean()
        return self.weight * adaptive_weight(reconstruction, loss, last_layer) * loss

    def update(self, real: Tensor, made: Tensor, lr: float) -> Tensor:
        self.model.requires_grad_(True)
        loss = hinge_loss(self.model(real), self.model(made))
        _set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss


class VQGANForTraining:
    """A VQGAN with everything that a step updates; ``step`` is the number of finished steps."""

    def __init__(self, run: TrainTokenizerConfig, device: torch.device) -> None:
        self.run = run
        self.device = device
        self.step = 0
        self.adversary: _Adversary | None = None
        with torch.random.fork_rng():
            torch.manual_seed(run.train.seed)
            model = initial_model(run)
            if run.loss.adversarial:
                discriminator = PatchDiscriminator(
                    run.loss.discriminator_channels, run.loss.discriminator_layers
                )
                self.adversary = _Adversary(run, discriminator.to(device))
        # On a CPU, channels_last makes convolutions a little faster but the backward pass of group
        # normalization fifty times slower (torch 2.13), so only CUDA uses it.
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        freeze_parts(self.model, run.freeze)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = adamw(self.model, run.train)
        self.codebook = MovingCodebook(self.model.quantize, run.codebook.decay)
        self.lpips = load_lpips(run.loss, device)

    @property
    def parts(self) -> dict[str, Any]:
        """The objects with training state, by their names in a checkpoint."""
        parts = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "codebook": self.codebook,
        }
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.model
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    @property
    def quantizing(self) -> bool:
        """Whether the warmup without a codebook is over."""
        return self.step >= self.run.codebook.warmup_steps

    def train_step(self, pixels: Tensor) -> dict[str, Tensor]:
        """Update everything once from (B, 3, H, W), float32 in [-1, 1]; return the losses."""
        pixels = pixels.to(self.device)
        lr = learning_rate(self.step, self.run.train)
        started = self.step >= self.run.loss.adversarial_start
        adversary = self.adversary if started else None
        output = self._forward(pixels)
        losses = self._update_generator(pixels, output, adversary, lr)
        if adversary is not None:
            losses["discriminator"] = adversary.update(pixels, output.pixels.detach(), lr)
        if output.codes is not None:
            self._update_codebook(output.latents.detach(), output.codes)
        self.step += 1
        self._update_average()
        return {name: value.detach() for name, value in losses.items()}

    def _forward(self, pixels: Tensor) -> _Output:
        with self._autocast():
            latents = self.model.encode_latents(pixels)
            if self.quantizing:
                quantized, codes, commitment = self.model.quantize(latents)
            else:
                quantized, codes, commitment = latents, None, latents.new_zeros(())
            made = self.model.decode_latents(quantized).float()
        return _Output(latents, codes, commitment, made)

    def _update_generator(
        self, pixels: Tensor, output: _Output, adversary: _Adversary | None, lr: float
    ) -> dict[str, Tensor]:
        config = self.run.loss
        reconstruction = pixel_loss(config, pixels, output.pixels)
        losses = {"reconstruction": reconstruction, "commitment": output.commitment}
        if self.lpips is not None:
            losses["lpips"] = self.lpips(pixels, output.pixels)
            reconstruction = reconstruction + config.lpips * losses["lpips"]
        loss = reconstruction + config.commitment * output.commitment.float()
        if adversary is not None:
            assert self.model.decoder is not None
            last_layer = self.model.decoder.conv_out.weight
            losses["adversarial"] = adversary.generator_loss(
                reconstruction, output.pixels, last_layer
            )
            loss = loss + losses["adversarial"]
        losses["loss"] = loss
        _set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.run.train.grad_clip:
            losses["gradient_norm"] = nn.utils.clip_grad_norm_(
                self.model.parameters(), self.run.train.grad_clip
            )
        self.optimizer.step()
        return losses

    def _update_codebook(self, latents: Tensor, codes: Tensor) -> None:
        config = self.run.codebook
        if "codebook" in self.run.freeze:
            counts = torch.bincount(codes.flatten(), minlength=len(self.codebook.uses))
            self.codebook.count_uses(counts)
            return
        self.codebook.update(latents, codes)
        if config.restart_after and self.step < config.restart_until * self.run.train.steps:
            moved = self.codebook.restart(latents, config.restart_after, self._random(1))
            # An average of the old and the new position would be meaningless.
            source = self.model.quantize.embedding.weight
            self.average.quantize.embedding.weight.data[moved] = source.data[moved]

    @torch.no_grad()
    def _update_average(self) -> None:
        # The decay starts low so that the average quickly forgets the random initial weights.
        ema = self.run.train.ema
        decay = min(ema, (1 + self.step) / (10 + self.step)) if ema else 0
        own, averaged = list(self.model.parameters()), list(self.average.parameters())
        torch._foreach_lerp_(averaged, own, 1.0 - decay)

    @torch.no_grad()
    def create_codebook(self, images: Tensor) -> None:
        """Create the codebook from the latents of training images, (N, 3, S, S), uint8."""
        config, size = self.run.codebook, self.run.train.batch_size
        codes_per_image = (images.shape[-1] // self.model.config.downsample_factor) ** 2
        wanted = min(len(images), max(1, config.samples // codes_per_image))
        chosen = images[torch.randperm(len(images), generator=self._random(2))[:wanted]]
        vectors = []
        for part in torch.split(chosen, size):
            with self._autocast():
                latents = self.model.encode_latents(to_float(part).to(self.device))
            vectors.append(latents.float().permute(0, 2, 3, 1).flatten(0, 2))
        count = self.model.config.codebook_size
        centers = kmeans(torch.cat(vectors), count, config.kmeans_iterations, self._random(3))
        self.codebook.reset(centers, uses=size * codes_per_image / count)
        self.average.quantize.embedding.weight.data.copy_(centers)

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions in [-1, 1] of uint8 images by the averaged model, and their codes.

        The codes are flattened, and empty during the warmup.
        """
        made, codes = [], []
        for part in torch.split(images, self.run.train.batch_size):
            with self._autocast():
                latents = self.average.encode_latents(to_float(part).to(self.device))
                if self.quantizing:
                    latents, chosen, _ = self.average.quantize(latents)
                    codes.append(chosen.flatten())
                made.append(self.average.decode_latents(latents).float().clamp(-1, 1).cpu())
        return torch.cat(made), torch.cat(codes) if codes else torch.zeros(0, dtype=torch.int64)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bfloat16"
        )

    def _random(self, purpose: int) -> torch.Generator:
        """Return a generator for this step and purpose."""
        return generator((self.run.train.seed * 9_176_263 + self.step * 8 + purpose) % 2**63, "cpu")


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
