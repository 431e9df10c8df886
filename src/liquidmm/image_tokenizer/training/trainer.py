"""Training an image tokenizer.

Contract: ``train_tokenizer`` turns a run file into a tokenizer folder. A run that was stopped
anywhere and resumed gives the same weights, bit for bit, as one that was not, because every random
choice depends on the seed and the step alone. Everything the run writes lies in ``out``:
``tokenizer/`` (averaged weights), ``metrics.jsonl``, ``samples/`` and ``checkpoint.safetensors``.
"""

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.files import atomic_file
from liquidmm.image_tokenizer.images import contact_sheet, psnr, to_image
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.training import checkpoint as saves
from liquidmm.image_tokenizer.training.codebook import MovingCodebook, kmeans, perplexity
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
from liquidmm.image_tokenizer.training.dataset import Pictures, batch, load_pictures, to_float
from liquidmm.image_tokenizer.training.losses import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
    pixel_loss,
)
from liquidmm.image_tokenizer.training.parts import freeze, load_lpips, start_model
from liquidmm.image_tokenizer.training.schedule import adamw, learning_rate
from liquidmm.runtime import generator, get_logger, resolve_device
from liquidmm.signals import StopSignals

_log = get_logger(__name__)


def train_tokenizer(
    run: TrainTokenizerConfig, resume: bool = False, stop_at: int | None = None
) -> Path:
    """Train an image tokenizer.

    SIGTERM and SIGINT end the training after the step in progress with a checkpoint.

    Args:
        run: The whole run file.
        resume: Go on from the checkpoint in ``run.out``.
        stop_at: Step to stop at as if interrupted, with a checkpoint; None trains to the end.

    Returns:
        The tokenizer folder; after ``stop_at`` it holds the averaged weights so far.

    Raises:
        ConfigError: The run does not fit its data, ``init_from`` or the checkpoint, or ``out``
            holds a training and ``resume`` is false.
        DataError: A picture is broken.
        KeyboardInterrupt: The training was stopped by a signal; its checkpoint is written.
    """
    checkpoint = run.out / "checkpoint.safetensors"
    if checkpoint.exists() and not resume:
        raise ConfigError(
            f"out: {run.out} holds a training already. Resume it, or choose another folder."
        )
    if resume and not checkpoint.exists():
        raise ConfigError(f"out: {checkpoint} does not exist. Start the training without resuming.")
    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    trainer = Trainer(run, load_pictures(run.data, run.train.seed))
    if resume:
        trainer.restore(checkpoint)
    return trainer.fit(min(run.train.steps, stop_at or run.train.steps))


class Trainer:
    """The state of one training: models, optimizers, codebook and the step they have reached."""

    def __init__(self, run: TrainTokenizerConfig, pictures: Pictures) -> None:
        """Build everything for step 0."""
        self.run = run
        self.pictures = pictures
        self.device = resolve_device(run.train.device)
        self.step = 0
        with torch.random.fork_rng():
            torch.manual_seed(run.train.seed)
            model = start_model(run)
            discriminator = PatchDiscriminator(
                run.loss.discriminator_channels, run.loss.discriminator_layers
            )
        # On a CPU channels_last makes convolutions a little faster, but the backward pass of group
        # normalisation fifty times slower (torch 2.13), so only CUDA gets it.
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.model = model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        freeze(self.model, run)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = adamw(self.model, run.train)
        self.codebook = MovingCodebook(self.model.quantize, run.codebook.decay)
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if run.loss.adversarial:
            self.discriminator = discriminator.to(self.device)
            self.discriminator_optimizer = adamw(self.discriminator, run.train)
        self.lpips = load_lpips(run.loss, self.device)

    def fit(self, until: int) -> Path:
        """Train up to a step; see ``train_tokenizer``."""
        run = self.run
        saves.write_run(run)
        bar = tqdm(total=run.train.steps, initial=self.step, desc="tokenizer", unit="step")
        with StopSignals() as stop, bar:
            self._loop(until, bar, stop)
        if self.step < until:
            _log.warning(f"stopped after step {self.step}; writing {run.out} to resume from")
            self._save()
            raise KeyboardInterrupt
        return run.out / "tokenizer"

    def _loop(self, until: int, bar: "tqdm[Any]", stop: threading.Event) -> None:
        train = self.run.train
        since, count = time.perf_counter(), 0
        sums: dict[str, Tensor] = {}
        while self.step < until and not stop.is_set():
            if self.step == self.run.codebook.warmup_steps and self.step:
                self._make_codebook()
            for name, value in self.train_step().items():
                sums[name] = sums.get(name, torch.zeros(())) + value.cpu()
            count += 1
            bar.update()
            if self.step % train.log_every == 0 or self.step == until:
                speed = count * train.batch_size / (time.perf_counter() - since)
                means = {name: float(value) / count for name, value in sums.items()}
                self._record({"split": "train", **means, **self.codebook.report()}, speed)
                bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.0f} img/s")
                since, sums, count = time.perf_counter(), {}, 0
            self._on_schedule(until)

    def _on_schedule(self, until: int) -> None:
        train, last = self.run.train, self.step == until
        if last or (train.validate_every and self.step % train.validate_every == 0):
            scores = self.validate()
            if scores:
                self._record({"split": "validation", **scores}, None)
                _log.info(
                    f"step {self.step}: psnr {scores['psnr']:.2f} dB, "
                    f"codes used {scores['codes_used']:.0%}, perplexity {scores['perplexity']:.0f}"
                )
        if last or (train.sample_every and self.step % train.sample_every == 0):
            self._sample()
        if last or (train.checkpoint_every and self.step % train.checkpoint_every == 0):
            self._save()

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up without a codebook is over."""
        return self.step >= self.run.codebook.warmup_steps

    def train_step(self) -> dict[str, Tensor]:
        """Take one step and give its losses."""
        run = self.run
        pixels = batch(
            self.pictures.train, self.step, run.train.batch_size, run.train.seed, run.data
        )
        pixels = pixels.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, run.train)
        with self._autocast():
            latents = self.model.encode_latents(pixels)
            if self.quantizing:
                quantized, codes, commitment = self.model.quantize(latents)
            else:
                quantized, commitment = latents, latents.new_zeros(())
            made = self.model.decode_latents(quantized).float()
        reconstruction = pixel_loss(run.loss, pixels, made)
        losses = {"reconstruction": reconstruction, "commitment": commitment}
        if self.lpips is not None:
            losses["lpips"] = self.lpips(pixels, made)
            reconstruction = reconstruction + run.loss.lpips * losses["lpips"]
        loss = reconstruction + run.loss.commitment * commitment.float()
        adversarial = self._adversarial(reconstruction, made)
        if adversarial is not None:
            losses["adversarial"] = adversarial
            loss = loss + adversarial
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.train.clip:
            losses["gradient_norm"] = nn.utils.clip_grad_norm_(
                self.model.parameters(), run.train.clip
            )
        self.optimizer.step()
        if adversarial is not None:
            losses["discriminator"] = self._discriminator_step(pixels, made.detach())
        if self.quantizing:
            self._learn_codes(latents.detach(), codes)
        self.step += 1
        self._update_average()
        losses["loss"] = loss
        return {name: value.detach() for name, value in losses.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bfloat16"
        )

    def _adversarial(self, reconstruction: Tensor, made: Tensor) -> Tensor | None:
        if self.discriminator is None or self.step < self.run.loss.adversarial_start:
            return None
        self.discriminator.requires_grad_(False)
        wish: Tensor = -self.discriminator(made).mean()
        weight = adaptive_weight(reconstruction, wish, self.model.decoder.conv_out.weight)
        return self.run.loss.adversarial * weight * wish

    def _discriminator_step(self, pixels: Tensor, made: Tensor) -> Tensor:
        if self.discriminator is None or self.discriminator_optimizer is None:
            return pixels.new_zeros(())
        self.discriminator.requires_grad_(True)
        loss = hinge_loss(self.discriminator(pixels), self.discriminator(made))
        for group in self.discriminator_optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.run.train)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimizer.step()
        return loss

    def _learn_codes(self, latents: Tensor, codes: Tensor) -> None:
        options = self.run.codebook
        if "codebook" in self.run.freeze:
            counts = torch.bincount(codes.flatten(), minlength=len(self.codebook.uses))
            self.codebook.watch(counts)
            return
        self.codebook.update(latents, codes)
        if options.restart_after and self.step < options.restart_until * self.run.train.steps:
            moved = self.codebook.restart(latents, options.restart_after, self._random(1))
            # The average of an old place and a new one is neither.
            source = self.model.quantize.embedding.weight
            self.average.quantize.embedding.weight.data[moved] = source.data[moved]

    def _random(self, purpose: int) -> torch.Generator:
        """Give random state for this step and purpose, independent of how the run got here."""
        return generator((self.run.train.seed * 9_176_263 + self.step * 8 + purpose) % 2**63, "cpu")

    @torch.no_grad()
    def _make_codebook(self) -> None:
        options, size = self.run.codebook, self.run.train.batch_size
        per_picture = (self.run.data.size // self.model.config.downsample_factor) ** 2
        pictures = self.pictures.train
        wanted = min(len(pictures), max(1, options.samples // per_picture))
        chosen = pictures[torch.randperm(len(pictures), generator=self._random(2))[:wanted]]
        vectors = []
        for part in torch.split(chosen, size):
            with self._autocast():
                latents = self.model.encode_latents(to_float(part).to(self.device))
            vectors.append(latents.float().permute(0, 2, 3, 1).flatten(0, 2))
        count = self.model.config.codebook_size
        centres = kmeans(torch.cat(vectors), count, options.kmeans_iterations, self._random(3))
        self.codebook.reset(centres, uses=size * per_picture / count)
        self.average.quantize.embedding.weight.data.copy_(centres)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Young averages follow quickly, so that the random start does not linger.
        decay = (
            min(self.run.train.ema, (1 + self.step) / (10 + self.step)) if self.run.train.ema else 0
        )
        own, averaged = list(self.model.parameters()), list(self.average.parameters())
        torch._foreach_lerp_(averaged, own, 1.0 - decay)

    @torch.inference_mode()
    def reconstruct(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pass uint8 pictures through the averaged model.

        Returns:
            Reconstructions in [-1, 1], and the codes; during the warm-up no codes (0 of them).
        """
        made, codes = [], []
        for part in torch.split(pictures, self.run.train.batch_size):
            with self._autocast():
                latents = self.average.encode_latents(to_float(part).to(self.device))
                if self.quantizing:
                    latents, chosen, _ = self.average.quantize(latents)
                    codes.append(chosen.flatten())
                made.append(self.average.decode_latents(latents).float().clamp(-1, 1).cpu())
        return torch.cat(made), torch.cat(codes) if codes else torch.zeros(0, dtype=torch.int64)

    def validate(self) -> dict[str, float]:
        """Score the averaged model on the held-out pictures; empty without any."""
        pictures = self.pictures.validation
        if not len(pictures):
            return {}
        made, codes = self.reconstruct(pictures)
        # A flat picture can come out exactly; 60 dB keeps the mean finite.
        scores = [min(60.0, psnr(a, b)) for a, b in zip(to_float(pictures), made, strict=True)]
        size = self.model.config.codebook_size
        counts = torch.bincount(codes.cpu(), minlength=size)
        return {
            "psnr": sum(scores) / len(scores),
            "l1": functional.l1_loss(made, to_float(pictures)).item(),
            "codes_used": float((counts > 0).sum()) / size,
            "perplexity": perplexity(counts) if len(codes) else 0.0,
        }

    def _sample(self) -> None:
        source = self.pictures.validation if len(self.pictures.validation) else self.pictures.train
        shown = source[:: max(1, len(source) // 16)][:16]
        made, _ = self.reconstruct(shown)
        images = [to_image(picture) for picture in (*to_float(shown), *made)]
        with atomic_file(self.run.out / "samples" / f"step_{self.step:07d}.png") as file:
            contact_sheet(images, columns=len(shown)).save(file, format="PNG")

    def _record(self, values: dict[str, Any], speed: float | None) -> None:
        line = {"step": self.step, "lr": learning_rate(self.step - 1, self.run.train), **values}
        if speed is not None:
            line["images_per_second"] = round(speed, 1)
        path = self.run.out / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise LiquidError(
                f"{path}: can't be written ({error.strerror}). Make room, then resume the training."
            ) from error

    def _save(self) -> None:
        saves.save(self.run.out / "checkpoint.safetensors", self.step, self._parts())
        model = self.average if self.run.train.ema else self.model
        tokenizer = VQGANTokenizer(copy.deepcopy(model), self.run.save_dtype)
        tokenizer.save(self.run.out / "tokenizer")

    def restore(self, file: Path) -> None:
        """Go on from a checkpoint of the same run."""
        saves.check_run(self.run)
        self.step = saves.load(file, self._parts())
        saves.cut_metrics(self.run.out / "metrics.jsonl", self.step)

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "codebook": self.codebook,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return {name: part for name, part in parts.items() if part is not None}
