"""The training loop of the language model; pretraining and fine-tuning differ only in the run file.

The loss of a step is the mean over all its targets for any number of micro-batches and ranks. A
resumed run equals an uninterrupted one bit for bit: the saved position determines the data, and
(seed, step, rank) all other randomness. Saving, evaluating and sampling do not affect training.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from liquidmm.config import to_dict
from liquidmm.data.examples import TASKS
from liquidmm.data.packing import PackedSequence
from liquidmm.errors import LiquidError
from liquidmm.files import write_text
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.runtime import get_logger, resolve_dtype, tune_cpu_allocator
from liquidmm.signals import StopSignals
from liquidmm.train import checkpoint as checkpoints
from liquidmm.train.batch import Batch
from liquidmm.train.config import TrainConfig
from liquidmm.train.distributed import Distributed
from liquidmm.train.estimate import utilization
from liquidmm.train.loss import LossConfig
from liquidmm.train.metrics import LossMeter, LossSpikeDetector, MetricsLog, open_trackers
from liquidmm.train.model import LiquidForTraining, load_for_training
from liquidmm.train.optim import build_optimizers, clip_gradients, learning_rate, optimizer_step
from liquidmm.train.setup import Setup, checkpoint_to_resume, open_setup

OnSample = Callable[[Checkpoint, int], None]
"""Called on the first rank with the model in evaluation mode and the number of finished steps."""
OnStep = Callable[[int, int], None]
"""Called before each step on every rank, with the number of finished steps and the rank."""

_LOG = get_logger(__name__)


def train(
    run: TrainConfig,
    on_sample: OnSample | None = None,
    *,
    on_step: OnStep | None = None,
    resume: bool = False,
) -> Path:
    """Train a checkpoint, or resume a run with the same settings.

    SIGTERM and SIGINT stop the run after the current step and save a checkpoint.

    Args:
        run: The run file; the same on every rank of `torchrun`.
        on_sample: Called every ``run.train.sample_every`` steps and at the end.
        on_step: Called before each step.
        resume: Accept changed settings.

    Returns:
        OUT/final, or the checkpoint folder if the run was stopped.

    Raises:
        ConfigError: ``run.out`` contains a run with other settings, or no run to resume.
        CheckpointError, DataError: A checkpoint or a folder of shards cannot be read.
        LiquidError: The gradient is not finite, the ranks differ, or a file cannot be written.
    """
    tune_cpu_allocator()
    with Distributed(run.device) as world, StopSignals() as stop:
        with world.raise_together():
            checkpoint = checkpoint_to_resume(run, resume, log=world.is_main)
        world.check_equal(checkpoint, "the latest checkpoint", "Use a shared folder for out.")
        done = 0 if checkpoint is None else checkpoints.read_state(checkpoint).step
        final = run.out / "final"
        if final.is_dir() and done >= run.train.steps:
            _LOG.info("%s: the run is already complete", final)
            return final
        with world.raise_together():
            setup = open_setup(run, world.size, world.device)
        world.check_equal(setup.digest, "the data or checkpoint", "Use the same files.")
        if world.is_main:
            write_text(run.out / "run.json", json.dumps(to_dict(run), indent=2))
        trainer = _Trainer(run, setup, world, on_sample)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        return trainer.run_until(stop, on_step)


def forward_backward(
    model: LiquidForTraining,
    batch: Batch,
    num_targets: int,
    meter: LossMeter,
    world: Distributed,
    *,
    micro_batch_size: int = 0,
    grad_accumulation: Literal["full", "sharded"] = "full",
) -> None:
    """Compute the gradients of a step; ``num_targets`` is the number of targets on all ranks."""
    parts = list(batch.split(micro_batch_size))
    for part in parts:
        if isinstance(model, FSDPModule):
            # Without a reduction the gradients accumulate unsharded on each rank.
            reduce = part is parts[-1] or grad_accumulation == "sharded"
            model.set_requires_gradient_sync(reduce)
            model.set_is_last_backward(reduce)
        result = model(part, len(TASKS), num_targets)
        # FSDP averages gradients over the ranks, but the step needs their sum.
        (result.loss * world.size).backward()
        meter.add(result)


class _Trainer:
    """The state of a run in progress."""

    def __init__(
        self, run: TrainConfig, setup: Setup, world: Distributed, on_sample: OnSample | None
    ) -> None:
        self.run = run
        self.setup = setup
        self.world = world
        self.on_sample = on_sample
        with world.raise_together():
            self.model = load_for_training(
                setup.folder,
                setup.processor.vocabulary,
                run.model,
                LossConfig(max_z_loss=run.optim.max_z_loss, z_loss=run.optim.z_loss),
                world=world,
                parallel=run.parallel,
                precision=getattr(torch, run.train.precision),
            )
        self.optimizers = build_optimizers(self.model.model, run.optim)
        self.stream = setup.stream
        self.streams = range(world.rank, run.train.global_batch_size, world.size)
        self.checkpointer = checkpoints.Checkpointer(run.out, run.train.keep_checkpoints, world)
        self.spikes = LossSpikeDetector(run.train.loss_spike_sigma)
        self.eval_batches: list[tuple[str, Batch]] | None = None
        self.metrics: dict[str, Any] = {}
        self.step = 0

    def restore(self, checkpoint: Path) -> None:
        with self.world.raise_together():
            state = checkpoints.read_state(checkpoint)
            checkpoints.restore(checkpoint, self.model.trainable(), self.optimizers, self.world)
            streams = state.data["streams"].items()
            mine = {number: each for number, each in streams if int(number) in self.streams}
            self.stream.load_state_dict(state.data | {"streams": mine})
        self.spikes.load_state_dict(state.loss_spikes)
        self.step = state.step
        if self.world.is_main:
            _LOG.info("%s: resuming after step %d", self.run.out, self.step)

    def run_until(self, stop: threading.Event, on_step: OnStep | None) -> Path:
        loop = self.run.train
        with contextlib.ExitStack() as stack:
            stack.callback(self.stream.close)
            log = stack.enter_context(self.open_log())
            meter = LossMeter(TASKS)
            while self.step < loop.steps and not self.world.any(stop.is_set()):
                if on_step is not None:
                    on_step(self.step, self.world.rank)
                rate = learning_rate(self.step, loop.steps, self.run.optim)
                norm = self.train_step(rate, meter)
                self.step += 1
                log.advance(loop.global_batch_size * self.run.data.seq_len)
                if self.is_due(loop.log_every):
                    self.metrics = meter.report(self.world.all_reduce)
                    more = {"grad_norm": norm, "lr": rate} | self.data_metrics()
                    log.write(self.step, self.metrics | more)
                    meter = LossMeter(TASKS)
                with log.pause():
                    self.run_callbacks(log)
            if self.step >= loop.steps:
                return self.finish(log)
            folder = self.save()
            self.checkpointer.finish()
            if self.world.is_main:
                _LOG.info("stopped after step %d; checkpoint: %s", self.step, folder)
            return folder

    def open_log(self) -> MetricsLog:
        run, main = self.run, self.world.is_main
        return MetricsLog(
            run.out / "metrics.jsonl" if main else None,
            step=self.step,
            steps=run.train.steps,
            trackers=open_trackers(run.trackers, run.out, self.step, to_dict(run)) if main else [],
            utilization=utilization(self.setup, self.model.model, self.world),
        )

    def train_step(self, rate: float, meter: LossMeter) -> float:
        """Run one optimizer step and return the gradient norm before clipping."""
        numbers = [self.run.seed, self.step, self.world.rank]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        sequences, batch, num_targets = self.next_batch()
        step_meter = LossMeter(TASKS)
        forward_backward(
            self.model,
            batch,
            num_targets,
            step_meter,
            self.world,
            micro_batch_size=self.run.train.micro_batch_size,
            grad_accumulation=self.run.parallel.grad_accumulation,
        )
        norm = clip_gradients(self.optimizers, self.run.optim.grad_clip)
        keys = [sequence.keys for sequence in sequences]
        if not math.isfinite(norm):
            self.abort(norm, batch, keys)
        self.check_spike(step_meter, keys)
        optimizer_step(self.optimizers, rate)
        meter.merge(step_meter)
        return norm

    def next_batch(self) -> tuple[list[PackedSequence], Batch, int]:
        """Return this rank's sequences of a step, and the number of targets on all ranks."""
        failure: LiquidError | None = None
        count = torch.zeros((), dtype=torch.float64)
        try:
            sequences = self.stream.next(self.streams)
            batch = Batch.from_sequences(sequences, self.world.device)
            count += batch.num_targets.cpu()
        except LiquidError as error:
            failure, count = error, count - math.inf  # reaches all ranks with the sum
        num_targets = float(self.world.all_reduce(count))
        if math.isinf(num_targets):
            self.checkpointer.finish()
            with self.world.raise_together():
                if failure is not None:
                    raise failure
        return sequences, batch, int(num_targets)

    def data_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {"epochs": round(max(self.stream.epochs), 4)}
        if self.run.data.overlong == "drop":
            dropped = torch.tensor(self.stream.dropped, dtype=torch.float64)
            metrics["dropped"] = int(self.world.all_reduce(dropped))
        return metrics

    def abort(self, norm: float, batch: Batch, keys: list[tuple[str, ...]]) -> None:
        """Stop before the weights are updated, and save the batch to OUT/failed."""
        step, folder = self.step + 1, self.run.out / "failed"
        with self.world.raise_together():
            name = f"step-{step:08d}-rank-{self.world.rank:05d}.safetensors"
            batch.save(folder / name, keys)
        self.checkpointer.finish()
        with self.world.raise_together():
            raise LiquidError(
                f"step {step}: the gradient norm is {norm}; the batch is in {folder}. Lower "
                "optim.lr, increase optim.warmup_steps, or remove those records; the latest "
                f"checkpoint is {checkpoints.latest_checkpoint(self.run.out)}."
            )

    def check_spike(self, meter: LossMeter, keys: list[tuple[str, ...]]) -> None:
        spike = self.spikes.update(meter.report(self.world.all_reduce).get("loss", 0.0))
        if spike is None:
            return
        every = self.world.gather(keys)
        if self.world.is_main:
            line = {"step": self.step + 1, "spike": spike, "records": every}
            with (self.run.out / "spikes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            _LOG.warning("step %d: %s; its records are in spikes.jsonl", self.step + 1, spike)

    def is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def run_callbacks(self, log: MetricsLog) -> None:
        """Save, evaluate and sample when due; after the last step, `finish` does this."""
        loop = self.run.train
        self.checkpointer.poll()
        if self.step >= loop.steps:
            return
        if self.is_due(loop.save_every):
            self.save()
        if self.is_due(loop.eval_every):
            self.evaluate(log)
        if self.is_due(loop.sample_every):
            self.sample()

    def finish(self, log: MetricsLog) -> Path:
        self.save()
        self.evaluate(log)
        self.sample()
        self.checkpointer.finish()
        dtype, out = self.run.save_dtype, self.run.out
        model = self.model.to_pretrained(self.setup.folder, self.world, getattr(torch, dtype))
        with self.world.raise_together():
            if model is not None:
                card = checkpoints.model_card(to_dict(self.run), self.metrics)
                checkpoints.write_final(out, self.setup.checkpoint(model), card, dtype)
        return out / "final"

    def save(self) -> Path:
        states = self.world.gather(self.stream.state_dict())
        streams = {number: each for state in states for number, each in state["streams"].items()}
        state = checkpoints.TrainState(
            step=self.step,
            data=states[0] | {"streams": streams},
            config=to_dict(self.run),
            loss_spikes=self.spikes.state_dict(),
        )
        return self.checkpointer.start(self.model.trainable(), self.optimizers, state)

    def evaluate(self, log: MetricsLog) -> None:
        if self.eval_batches is None:
            mine = slice(self.world.rank, None, self.world.size)
            self.eval_batches = [
                (name, Batch.from_sequences(sequences[mine], self.world.device))
                for name, sequences in self.setup.eval_sequences()
            ]
        metrics: dict[str, Any] = {}
        with self.evaluating():
            for name, batch in self.eval_batches:
                meter = LossMeter(TASKS)
                for part in batch.split(self.run.train.micro_batch_size):
                    meter.add(self.model(part, len(TASKS)))
                report = meter.report(self.world.all_reduce)
                metrics[f"eval/loss/{name}"] = report.get("loss")
                metrics[f"eval/accuracy/{name}"] = report.get("accuracy")
        if metrics:
            self.metrics = metrics
            log.append(self.step, metrics)

    def sample(self) -> None:
        if self.on_sample is None:
            return
        with self.evaluating():
            dtype = resolve_dtype("auto", self.world.device)
            model = self.model.to_pretrained(self.setup.folder, self.world, dtype)
            if model is not None:
                nn.Module.eval(nn.Module.to(model, self.world.device))
                self.on_sample(self.setup.checkpoint(model), self.step)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        self.model.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.model.train()
