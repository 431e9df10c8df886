"""The one loop of the language model: pre-training and tuning differ by the run file only.

Contract: `train` takes a run and gives the folder that came out of it, on one rank or on many. A
step's loss is the mean over all its labels, whatever the micro-batches and ranks. A stopped run,
gone on with, equals one that never stopped, bit by bit: the data of a step follow from the saved
position, and all other randomness from (seed, step, rank). Saving, validating and sampling change
nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from liquidmm.config import to_dict
from liquidmm.data.examples import TASKS
from liquidmm.data.mixture import TokenStream
from liquidmm.data.packing import PackedSequence
from liquidmm.errors import LiquidError
from liquidmm.files import atomic_file
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.runtime import get_logger, resolve_dtype, tune_cpu_allocator
from liquidmm.signals import StopSignals
from liquidmm.train import checkpoint as saves
from liquidmm.train.batch import Batch
from liquidmm.train.config import TrainConfig
from liquidmm.train.data_plan import plan_data
from liquidmm.train.distributed import Distributed
from liquidmm.train.final import model_card, write_final
from liquidmm.train.flops import flops_per_token, mfu, peak_flops
from liquidmm.train.loss import LossConfig
from liquidmm.train.loss_spikes import LossSpikeDetector, write_failed
from liquidmm.train.metrics import LossMeter, MetricsLog
from liquidmm.train.model import load_for_training, trained_share
from liquidmm.train.optim import learning_rate
from liquidmm.train.setup import Setup, open_setup, save_to_resume
from liquidmm.train.step import Stepper
from liquidmm.train.trackers import open_trackers

OnSample = Callable[[Checkpoint, int], None]
"""Called on the first rank with the checkpoint as it is, in evaluation mode, and the steps done."""

_LOG = get_logger(__name__)


def train(run: TrainConfig, on_sample: OnSample | None = None, *, resume: bool = False) -> Path:
    """Train a checkpoint, or go on where a run of the same settings stopped.

    SIGTERM and SIGINT end the run after the step in progress with a save. Every rank of a
    `torchrun` calls this with the same run.

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
        LiquidError: The loss is no number any more, the ranks differ, or the disk refused.
    """
    tune_cpu_allocator()
    with Distributed(run.device) as world, StopSignals() as stop:
        with world.raise_together():
            save = save_to_resume(run, resume, told=world.is_main)
        world.check_equal(save, "the newest save", "Give all ranks the same folder out.")
        done = 0 if save is None else saves.read_progress(save).step
        final = run.out / "final"
        if final.is_dir() and done >= run.train.steps:
            _LOG.info("%s: is finished already", final)
            return final
        with world.raise_together():
            setup = open_setup(run, world.size, world.device)
        world.check_equal(setup.digest, "the data or checkpoint", "Give all ranks the same files.")
        if world.is_main:
            with atomic_file(run.out / "run.json") as path:
                path.write_text(json.dumps(to_dict(run), indent=2), encoding="utf-8")
        return _Trainer(run, setup, world, save, on_sample).run_until(stop)


class _Trainer:
    """Everything a run holds while it runs."""

    def __init__(
        self,
        run: TrainConfig,
        setup: Setup,
        world: Distributed,
        save: Path | None,
        on_sample: OnSample | None,
    ) -> None:
        self.run = run
        self.setup = setup
        self.world = world
        self.on_sample = on_sample
        with world.raise_together():
            self.trainee = load_for_training(
                setup.folder,
                setup.processor.vocabulary,
                run.model,
                LossConfig(max_z_loss=run.optim.max_z_loss, z_loss=run.optim.z_loss),
                world=world,
                parallel=run.parallel,
                precision=getattr(torch, run.train.precision),
            )
        self.stepper = Stepper(
            self.trainee,
            run.optim,
            world,
            part_rows=run.train.micro_batch_size,
            grad_accumulation=run.parallel.grad_accumulation,
        )
        self.stream: TokenStream = setup.stream
        self.lanes = range(world.rank, run.train.global_batch_size, world.size)
        self.saver = saves.Checkpointer(run.out, run.train.keep_checkpoints, world)
        self.watch = LossSpikeDetector(run.train.loss_spike_sigma)
        self.validation: list[tuple[str, Batch]] | None = None
        self.figures: dict[str, Any] = {}
        self.step = 0
        if save is not None:
            with world.raise_together():
                progress = saves.read_progress(save)
                saves.restore(save, self.trainee.trainable(), self.stepper.optimizers, world)
                self.stream.restore(_only(progress.data, self.lanes))
            self.watch.restore(progress.watch)
            self.step = progress.step
            if world.is_main:
                _LOG.info("%s: goes on after step %d", run.out, self.step)

    def run_until(self, stop: threading.Event) -> Path:
        """Train to the last step, or until ``stop`` is set on some rank."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.stream.close)
            log = stack.enter_context(self.open_log())
            tally = LossMeter(TASKS)
            while self.step < self.run.train.steps and not self.world.any(stop.is_set()):
                rate = learning_rate(self.step, self.run.train.steps, self.run.optim)
                norm = self.train_step(rate, tally)
                self.step += 1
                log.advance(self.run.train.global_batch_size * self.run.data.seq_len)
                if self.is_due(self.run.train.log_every):
                    self.figures = tally.report(self.world.all_reduce)
                    told = {"gradient_norm": norm, "lr": rate} | self.data_metrics()
                    log.write(self.step, self.figures | told)
                    tally = LossMeter(TASKS)
                with log.pause():
                    self.run_callbacks(log)
            if self.step < self.run.train.steps:
                folder = self.save()
                self.saver.finish()
                if self.world.is_main:
                    _LOG.info("stopped after step %d; saved in %s", self.step, folder)
                return folder
            return self.finish(log)

    def open_log(self) -> MetricsLog:
        """Open metrics.jsonl, the bar and the trackers; other ranks than the first get a dummy."""
        main = self.world.is_main
        run, names = self.run, self.run.trackers
        return MetricsLog(
            run.out / "metrics.jsonl" if main else None,
            step=self.step,
            steps=run.train.steps,
            trackers=open_trackers(names, run.out, self.step, to_dict(run)) if main else [],
            utilization=self.utilization(),
        )

    def utilization(self) -> Callable[[float], float] | None:
        """Give what turns ids per second into MFU; None where the device's peak isn't known."""
        peak = peak_flops(self.world.device, getattr(torch, self.run.train.precision))
        if peak is None:
            return None
        data = plan_data(self.stream, self.run.data.sources, self.run.data.packing, 1)
        flops = flops_per_token(
            self.setup.config,
            data.length,
            labelled_share=data.labelled,
            trained_share=trained_share(self.trainee.model),
        )
        return lambda speed: round(mfu(speed, flops, peak * self.world.size), 4)

    def train_step(self, rate: float, tally: LossMeter) -> float:
        """Do one optimizer step; return the gradient norm before clipping."""
        numbers = [self.run.seed, self.step, self.world.rank]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        rows, batch, labels = self.next_rows()
        of_step = LossMeter(TASKS)
        norm = self.stepper.gradients(batch, labels, of_step)
        if not math.isfinite(norm):
            self.abort(norm, rows, batch)
        self.check_spike(of_step, rows)
        self.stepper.update(rate)
        tally.merge(of_step)
        return norm

    def next_rows(self) -> tuple[list[PackedSequence], Batch, int]:
        """Take this rank's rows of a step; count the labels of all ranks'."""
        failure: LiquidError | None = None
        rows: list[PackedSequence] = []
        count = torch.zeros((), dtype=torch.float64)
        try:
            rows = self.stream.take(self.lanes)
            batch = Batch.of(rows, self.world.device)
            count += batch.labels.cpu()
        except LiquidError as error:
            failure, count = error, count - math.inf  # told to all ranks with the sum
        labels = float(self.world.all_reduce(count))
        if math.isinf(labels):
            self.saver.finish()
            with self.world.raise_together():
                if failure is not None:
                    raise failure
        return rows, batch, int(labels)

    def data_metrics(self) -> dict[str, float]:
        """Say how often the rows most drawn came by, and how many records were left out."""
        told: dict[str, float] = {"passes": round(max(self.stream.passes), 4)}
        if self.run.data.overlong == "drop":
            mine = torch.tensor(self.stream.left_out, dtype=torch.float64)
            told["left_out"] = int(self.world.all_reduce(mine))
        return told

    def abort(self, norm: float, rows: list[PackedSequence], batch: Batch) -> None:
        """Stop before weights are spoilt, and keep the rows that did it."""
        with self.world.raise_together():
            path = write_failed(self.run.out, self.step + 1, self.world.rank, rows, batch)
        self.saver.finish()
        with self.world.raise_together():
            raise LiquidError(
                f"step {self.step + 1}: the gradient is {norm}; its rows are in {path.parent}. "
                "Lower optim.lr or lengthen the warm-up, or leave those records out; the last save "
                f"is {saves.latest(self.run.out)}."
            )

    def check_spike(self, of_step: LossMeter, rows: list[PackedSequence]) -> None:
        """Report a step whose loss stands out, with the records it was made from."""
        spike = self.watch.update(of_step.report(self.world.all_reduce).get("loss", 0.0))
        if spike is None:
            return
        keys = self.world.gather([row.keys for row in rows])
        if self.world.is_main:
            line = {"step": self.step + 1, "spike": spike, "records": keys}
            with (self.run.out / "spikes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            _LOG.warning("step %d: %s; its records are in spikes.jsonl", self.step + 1, spike)

    def is_due(self, every: int) -> bool:
        """Tell whether something that comes every so many steps comes now."""
        return every > 0 and self.step % every == 0

    def run_callbacks(self, log: MetricsLog) -> None:
        """Save, validate and sample where it is time to; the end has its own turn."""
        loop = self.run.train
        self.saver.poll()
        if self.step >= loop.steps:
            return
        if self.is_due(loop.save_every):
            self.save()
        if self.is_due(loop.eval_every):
            self.validate(log)
        if self.is_due(loop.sample_every):
            self.sample()

    def finish(self, log: MetricsLog) -> Path:
        """Save, measure, show and write what came out."""
        self.save()
        self.validate(log)
        self.sample()
        self.saver.finish()
        final = self.run.out / "final"
        model = self.trainee.to_pretrained(
            self.setup.folder, self.world, getattr(torch, self.run.save_dtype)
        )
        with self.world.raise_together():
            if model is not None:
                card = model_card(to_dict(self.run), self.figures)
                write_final(self.run.out, self.setup.checkpoint(model), card, self.run.save_dtype)
        return final

    def save(self) -> Path:
        """Begin to save everything the run needs to go on."""
        states = self.world.gather(self.stream.state())
        lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
        progress = saves.Progress(
            step=self.step,
            data=states[0] | {"lanes": lanes},
            run=to_dict(self.run),
            watch=self.watch.state(),
        )
        return self.saver.start(self.trainee.trainable(), self.stepper.optimizers, progress)

    def validate(self, log: MetricsLog) -> None:
        """Measure each validation source by itself."""
        figures: dict[str, Any] = {}
        if self.validation is None:
            part = slice(self.world.rank, None, self.world.size)
            self.validation = [
                (name, Batch.of(rows[part], self.world.device))
                for name, rows in self.setup.validation_rows()
            ]
        with self.evaluating():
            for name, batch in self.validation:
                tally = LossMeter(TASKS)
                for micro in batch.split(self.run.train.micro_batch_size):
                    tally.add(self.trainee(micro, len(TASKS)))
                report = tally.report(self.world.all_reduce)
                figures[f"validation/loss/{name}"] = report.get("loss")
                figures[f"validation/accuracy/{name}"] = report.get("accuracy")
        if figures:
            self.figures = figures
            log.append(self.step, figures)

    def sample(self) -> None:
        """Let the caller show what the model can do."""
        if self.on_sample is None:
            return
        with self.evaluating():
            dtype = resolve_dtype("auto", self.world.device)
            model = self.trainee.to_pretrained(self.setup.folder, self.world, dtype)
            if model is not None:
                nn.Module.eval(nn.Module.to(model, self.world.device))
                self.on_sample(self.setup.checkpoint(model), self.step)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without gradients."""
        self.trainee.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.trainee.train()


def _only(state: dict[str, Any], lanes: range) -> dict[str, Any]:
    mine = {number: lane for number, lane in state["lanes"].items() if int(number) in lanes}
    return state | {"lanes": mine}
