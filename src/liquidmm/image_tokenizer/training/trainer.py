"""The training loop of an image tokenizer.

A run that is stopped at any point and resumed gives bit for bit the same weights as an
uninterrupted run. The folder ``out`` contains ``tokenizer/`` (averaged weights), ``metrics.jsonl``,
``samples/`` and ``checkpoint.safetensors``.
"""

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.files import atomic_file
from liquidmm.image_tokenizer.images import contact_sheet, psnr, to_float, to_image
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.training import checkpoint
from liquidmm.image_tokenizer.training.codebook import code_usage
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
from liquidmm.image_tokenizer.training.dataset import ImageSplits, get_batch, load_images
from liquidmm.image_tokenizer.training.optim import learning_rate
from liquidmm.image_tokenizer.training.step import VQGANForTraining
from liquidmm.runtime import get_logger, resolve_device
from liquidmm.signals import StopSignals

_LOG = get_logger(__name__)
# This maximum PSNR in dB keeps the mean finite if an image is reconstructed exactly.
_MAX_PSNR = 60.0
_MAX_SAMPLES = 16


def train_tokenizer(
    run: TrainTokenizerConfig, resume: bool = False, stop_at: int | None = None
) -> Path:
    """Train an image tokenizer and return its folder.

    SIGTERM and SIGINT end the training after the current step with a checkpoint and the averaged
    weights so far, as does reaching the step ``stop_at``.

    Raises:
        ConfigError: The run does not fit its data, ``init_from`` or the checkpoint, or ``out``
            contains a run and ``resume`` is false.
        DataError: An image is broken.
        KeyboardInterrupt: A signal stopped the training after a checkpoint was written.
    """
    file = run.out / "checkpoint.safetensors"
    if file.exists() and not resume:
        raise ConfigError(
            f"out: {run.out} contains a training run. Resume it, or choose another folder."
        )
    if resume and not file.exists():
        raise ConfigError(f"out: no checkpoint {file}. Start training without resuming.")
    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    trainer = Trainer(run, load_images(run.data, run.train.seed))
    if resume:
        trainer.restore(file)
    return trainer.fit(min(run.train.steps, stop_at or run.train.steps))


class Trainer:
    """Feeds images to the model, and logs, evaluates, samples and saves on schedule."""

    def __init__(self, run: TrainTokenizerConfig, images: ImageSplits) -> None:
        self.run = run
        self.images = images
        self.model = VQGANForTraining(run, resolve_device(run.train.device))

    def restore(self, file: Path) -> None:
        """Resume from a checkpoint of the same run."""
        checkpoint.check_run(self.run)
        self.model.step = checkpoint.load(file, self.model.parts)
        checkpoint.truncate_metrics(self.run.out / "metrics.jsonl", self.model.step)

    def fit(self, until: int) -> Path:
        """Train up to a step; see ``train_tokenizer``."""
        run = self.run
        checkpoint.write_run(run)
        bar = tqdm(total=run.train.steps, initial=self.model.step, desc="tokenizer", unit="step")
        with StopSignals() as stop, bar:
            self._loop(until, bar, stop)
        if self.model.step < until:
            _LOG.warning(f"stopped after step {self.model.step}; saving a checkpoint in {run.out}")
            self._save()
            raise KeyboardInterrupt
        return run.out / "tokenizer"

    def _loop(self, until: int, bar: "tqdm[Any]", stop: threading.Event) -> None:
        config, model = self.run.train, self.model
        since, count = time.perf_counter(), 0
        sums: dict[str, Tensor] = {}
        while model.step < until and not stop.is_set():
            if model.step == self.run.codebook.warmup_steps and model.step:
                model.create_codebook(self.images.train)
            pixels = get_batch(
                self.images.train, model.step, config.batch_size, config.seed, self.run.data
            )
            for name, value in model.train_step(pixels).items():
                sums[name] = sums.get(name, torch.zeros(())) + value.cpu()
            count += 1
            bar.update()
            if model.step % config.log_every == 0 or model.step == until:
                speed = count * config.batch_size / (time.perf_counter() - since)
                means = {name: float(value) / count for name, value in sums.items()}
                line = {"split": "train", **means, **model.codebook.report()}
                self._log({**line, "images_per_second": round(speed, 1)})
                bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.0f} img/s")
                since, sums, count = time.perf_counter(), {}, 0
            self._run_callbacks(until)

    def _run_callbacks(self, until: int) -> None:
        config, step = self.run.train, self.model.step

        def is_due(every: int) -> bool:
            return step == until or (every > 0 and step % every == 0)

        if is_due(config.eval_every) and (scores := self.evaluate()):
            self._log({"split": "eval", **scores})
            _LOG.info(
                f"step {step}: psnr {scores['psnr']:.2f} dB, "
                f"codes used {scores['codes_used']:.0%}, perplexity {scores['perplexity']:.0f}"
            )
        if is_due(config.sample_every):
            self._sample()
        if is_due(config.save_every):
            self._save()

    def evaluate(self) -> dict[str, float]:
        """Score the averaged model on the evaluation images; empty if there are none."""
        images = self.images.eval
        if not len(images):
            return {}
        made, codes = self.model.reconstruct(images)
        pixels = to_float(images)
        scores = [min(_MAX_PSNR, psnr(a, b)) for a, b in zip(pixels, made, strict=True)]
        counts = torch.bincount(codes.cpu(), minlength=self.run.vqgan.codebook_size)
        return {
            "psnr": sum(scores) / len(scores),
            "l1": functional.l1_loss(made, pixels).item(),
            **code_usage(counts),
        }

    def _sample(self) -> None:
        source = self.images.eval if len(self.images.eval) else self.images.train
        shown = source[:: max(1, len(source) // _MAX_SAMPLES)][:_MAX_SAMPLES]
        made, _ = self.model.reconstruct(shown)
        images = [to_image(pixels) for pixels in (*to_float(shown), *made)]
        with atomic_file(self.run.out / "samples" / f"step_{self.model.step:07d}.png") as file:
            contact_sheet(images, columns=len(shown)).save(file, format="PNG")

    def _log(self, values: dict[str, Any]) -> None:
        step = self.model.step
        line = {"step": step, "lr": learning_rate(step - 1, self.run.train), **values}
        path = self.run.out / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise LiquidError(
                f"{path}: cannot be written ({error.strerror}). Free some disk space, then resume."
            ) from error

    def _save(self) -> None:
        checkpoint.save(self.run.out / "checkpoint.safetensors", self.model.step, self.model.parts)
        weights = self.model.average if self.run.train.ema else self.model.model
        tokenizer = VQGANTokenizer(copy.deepcopy(weights), self.run.save_dtype)
        tokenizer.save(self.run.out / "tokenizer")
