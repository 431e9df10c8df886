"""The one loop of the language model: pre-training and tuning differ by the run file only.

Contract: `train` takes a run and gives the folder that came out of it. A step's loss is the mean
over all its labels, whatever the micro-batches. A stopped run, gone on with, equals one that never
stopped, bit by bit. Saving, validating and sampling don't touch the random state of training.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from liquidmm.config import to_dict
from liquidmm.data.manifest import read_manifest
from liquidmm.data.mixture import Mixture, Source
from liquidmm.data.render import IGNORE, TASKS, RenderConfig, Renderer
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.runtime import atomic_file, get_logger
from liquidmm.train import checkpoint as saves
from liquidmm.train.batch import Batch, hidden_states
from liquidmm.train.config import TrainRun, differences
from liquidmm.train.loss import Head, LossConfig, LossResult, head_of, next_token_loss
from liquidmm.train.memory import prepare_cpu
from liquidmm.train.metrics import MetricsLog, Tally
from liquidmm.train.optim import build_optimizers, learning_rate
from liquidmm.train.stop import StopSignals

OnSample = Callable[[Checkpoint, int], None]
"""Called with the live checkpoint, in evaluation mode, and the steps done."""

_LOG = get_logger(__name__)


def train(run: TrainRun, on_sample: OnSample | None = None, *, resume: bool = False) -> Path:
    """Train a checkpoint, or go on where a run of the same settings stopped.

    SIGTERM and SIGINT end the run after the step in progress with a save.

    Args:
        run: What to do.
        on_sample: Shows what the model can do by now, ``run.train.sample_every`` steps apart and at
            the end.
        resume: Go on even though settings changed; without it that is an error.

    Returns:
        OUT/final; or the folder of the save, when the run was stopped.

    Raises:
        ConfigError: ``run.out`` holds a run with other settings, or none to resume.
        CheckpointError: The checkpoint or a save can't be loaded.
        DataError: A folder of shards can't be read or doesn't fit.
        LiquidError: The loss is no number any more, or the disk refused.
    """
    prepare_cpu()
    save = _save_to_resume(run, resume)
    final = run.out / "final"
    done = 0 if save is None else saves.read_progress(save).step
    if final.is_dir() and done >= run.train.steps:
        _LOG.info("%s: is finished already", final)
        return final
    with atomic_file(run.out / "run.json") as path:
        path.write_text(json.dumps(to_dict(run), indent=2), encoding="utf-8")
    trainer = _Trainer(run, save, on_sample)
    with StopSignals() as stop:
        return trainer.run_until(stop)


def _save_to_resume(run: TrainRun, resume: bool) -> Path | None:
    save = saves.latest(run.out)
    if save is None:
        if resume:
            raise ConfigError(f"{run.out}: holds no save to resume. Leave --resume out.")
        return None
    changed = differences(saves.read_progress(save).run, run)
    if changed and not resume:
        raise ConfigError(
            f"{run.out}: holds a run with other settings ({'; '.join(changed)}). Choose "
            "another out, restore the settings, or go on with the new ones: --resume."
        )
    for change in changed:
        _LOG.warning("resuming although %s", change)
    return save


class _Trainer:
    """Everything a run holds while it runs."""

    def __init__(self, run: TrainRun, save: Path | None, on_sample: OnSample | None) -> None:
        self.run = run
        self.on_sample = on_sample
        torch.manual_seed(run.seed)
        folder = run.checkpoint if save is None else save / "model"
        self.checkpoint = _with_sizes(Checkpoint.load(folder, run.device, "float32"), run)
        self.model = self.checkpoint.model
        self.device = next(self.model.parameters()).device
        self.head: Head = head_of(self.model)
        self.loss = LossConfig(max_z=run.optim.max_z, z_loss=run.optim.z_loss)
        self.optimizers = build_optimizers(self.model, run.optim)
        self.groups = [group for each in self.optimizers for group in each.param_groups]
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.stream = self.open_stream(run.data.sources, run.data.render)
        self.validation: list[tuple[str, Batch]] | None = None
        self.figures: dict[str, Any] = {}
        self.step = 0
        if save is not None:
            progress = saves.read_progress(save)
            saves.restore(save, self.model, self.optimizers)
            self.stream.restore(progress.data)
            self.step = progress.step
            _LOG.info("%s: goes on after step %d", run.out, self.step)
        if run.train.compile:
            for block in _blocks(self.model):
                block.compile()

    def open_stream(self, sources: Sequence[Source], render: RenderConfig) -> Mixture:
        """Open shards as an endless stream of packed rows."""
        images = self.checkpoint.images
        return Mixture(
            sources,
            Renderer(
                self.checkpoint.processor.sequences,
                render,
                None if images is None else images.factor,
            ),
            self.run.data.length,
            self.run.seed,
            fingerprint=None if images is None else images.fingerprint,
        )

    def validation_batches(self) -> Iterator[tuple[str, Batch]]:
        """Make the rows to measure on, which are always the same ones."""
        render = replace(self.run.data.render, guidance_dropout=0.0)
        # Folders of the same name must not share a figure.
        folders = {source.path for source in self.run.data.validation}
        names = Counter(path.name for path in folders)
        for source in self.run.data.validation:
            stream = self.open_stream((source,), render)
            rows = [next(stream) for _ in range(self.run.train.validate_rows)]
            name = source.path.name if names[source.path.name] == 1 else source.path.as_posix()
            yield f"{name}/{source.task}", Batch.of(rows, self.device)

    def run_until(self, stop: threading.Event) -> Path:
        """Train to the last step, or until ``stop`` is set."""
        loop = self.run.train
        path = self.run.out / "metrics.jsonl"
        with MetricsLog(path, step=self.step, steps=loop.steps) as log:
            self.model.train()
            tally = Tally(TASKS)
            while self.step < loop.steps and not stop.is_set():
                rate = learning_rate(self.step, loop.steps, self.run.optim)
                norm = self.one_step(rate, tally)
                self.step += 1
                log.advance(loop.batch_rows * self.run.data.length)
                if self.due(loop.log_every):
                    self.figures = tally.report()
                    log.write(self.step, self.figures | {"gradient_norm": norm, "lr": rate})
                    tally = Tally(TASKS)
                with log.pause():
                    self.between_steps(log)
            if self.step < loop.steps:
                folder = self.save()
                _LOG.info("stopped after step %d; saved in %s", self.step, folder)
                return folder
            return self.finish(log)

    def one_step(self, rate: float, tally: Tally) -> float:
        """Do one optimizer step; return the gradient norm before clipping."""
        rows = [next(self.stream) for _ in range(self.run.train.batch_rows)]
        batch = Batch.of(rows, self.device)
        labels = int((batch.target != IGNORE).sum())
        for part in batch.split(self.run.train.micro_batch_rows):
            result = self.forward(part, labels)
            result.loss.backward()  # type: ignore[no-untyped-call]
            tally.add(result)
        clip = self.run.optim.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters, clip))
        if not math.isfinite(norm):
            raise LiquidError(
                f"step {self.step + 1}: the gradient is {norm}. Lower optim.lr or lengthen the "
                f"warm-up; the last save is {saves.latest(self.run.out)}."
            )
        for group in self.groups:
            group["lr"] = rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def forward(self, batch: Batch, labels: int | None = None) -> LossResult:
        """Compute the loss of some rows as their part of a step with so many labels."""
        bfloat16 = self.run.train.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            return next_token_loss(
                hidden_states(self.model, batch),
                self.head,
                batch.target,
                batch.task_ids,
                self.loss,
                tasks=len(TASKS),
                denominator=labels,
            )

    def due(self, every: int) -> bool:
        """Tell whether something that comes every so many steps comes now."""
        return every > 0 and self.step % every == 0

    def between_steps(self, log: MetricsLog) -> None:
        """Save, validate and sample where it is time to; the end has its own turn."""
        loop = self.run.train
        if self.step >= loop.steps:
            return
        if self.due(loop.save_every):
            self.save()
        if self.due(loop.validate_every):
            self.validate(log)
        if self.due(loop.sample_every):
            self.sample()

    def finish(self, log: MetricsLog) -> Path:
        """Save, measure, show and write what came out."""
        self.save()
        self.validate(log)
        self.sample()
        card = saves.model_card(to_dict(self.run), self.figures)
        return saves.write_final(self.run.out, self.checkpoint, card, self.run.final_dtype)

    def save(self) -> Path:
        """Save everything the run needs to go on."""
        progress = saves.Progress(step=self.step, data=self.stream.state(), run=to_dict(self.run))
        keep = self.run.train.keep
        return saves.save(self.run.out, self.checkpoint, self.optimizers, progress, keep)

    def validate(self, log: MetricsLog) -> None:
        """Measure each validation source by itself."""
        figures: dict[str, Any] = {}
        if self.validation is None:
            self.validation = list(self.validation_batches())
        with self.evaluating():
            for name, batch in self.validation:
                tally = Tally(TASKS)
                for part in batch.split(self.run.train.micro_batch_rows):
                    tally.add(self.forward(part))
                report = tally.report()
                figures[f"validation/loss/{name}"] = report.get("loss")
                figures[f"validation/accuracy/{name}"] = report.get("accuracy")
        if figures:
            self.figures = figures
            log.append(self.step, figures)

    def sample(self) -> None:
        """Let the caller show what the model can do."""
        if self.on_sample is not None:
            with self.evaluating():
                self.on_sample(self.checkpoint, self.step)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without gradients and without touching the training's random state."""
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.eval()  # type: ignore[no-untyped-call]
        try:
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices),
                torch.compiler.set_stance("force_eager"),
            ):
                yield
        finally:
            self.model.train()


def _with_sizes(checkpoint: Checkpoint, run: TrainRun) -> Checkpoint:
    """Write down the sizes of the pictures to be trained on, where the checkpoint names none."""
    if checkpoint.processor.sizes or checkpoint.images is None:
        return checkpoint
    counts: Counter[tuple[int, int]] = Counter()
    for source in run.data.sources:
        if source.task == "text_to_image":
            for size, count in read_manifest(source.path).totals.sizes.items():
                width, height = (int(side) * checkpoint.images.factor for side in size.split(" x "))
                counts[width, height] += count
    sizes = tuple(size for size, _ in counts.most_common())
    return checkpoint.with_pictures(checkpoint.images, sizes)


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Find the decoder blocks: the first list of modules, in every family."""
    return next(part for part in model.base_model.modules() if isinstance(part, nn.ModuleList))
