"""Our training as one side of a comparison: packed rows, the loss without full logits, AdamW.

Contract: a step does what `train.trainer` does in one, drawing and packing of its rows included;
validating, saving and logging are left out on all sides. `tokens` counts ids that are not padding,
`positions` all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from liquidmm.bench.job import Job
from liquidmm.bench.worker import Pacer
from liquidmm.data.examples import IGNORE, TASKS
from liquidmm.data.packing import PADDING_TASK, PackedSequence
from liquidmm.model.checkpoint import load_parts, local_folder
from liquidmm.runtime import resolve_device, tune_cpu_allocator
from liquidmm.train.batch import Batch, hidden_states
from liquidmm.train.config import TrainConfig
from liquidmm.train.distributed import Distributed, ParallelConfig
from liquidmm.train.loss import LossConfig
from liquidmm.train.metrics import LossMeter
from liquidmm.train.model import LiquidForTraining, ModelConfig, load_for_training, prepare
from liquidmm.train.step import Stepper
from liquidmm.vocabulary import Vocabulary


def train_packed(pacer: Pacer, job: Job) -> None:
    """Train our way, as long as the pacer says go.

    Args:
        pacer: Says when to do a step.
        job: What to train.
    """
    tune_cpu_allocator()
    trainee = make_trainee(job, job.model, job.precision)
    part_rows = job.loop.micro_batch_size
    stepper = Stepper(trainee, job.optim, Distributed(job.device), part_rows=part_rows)
    stream = job.rows()
    while pacer.go():
        began = time.perf_counter()
        rows = stream.take(job.lanes)
        batch = Batch.of(rows, pacer.device)
        drawing = time.perf_counter() - began
        tally = LossMeter(TASKS)
        norm = stepper.gradients(batch, int(batch.labels), tally)
        assert math.isfinite(norm), "the gradient is no number"
        tally.report()
        stepper.update(job.optim.lr)
        pacer.count(drawing=drawing, **counts_of(rows))


def counts_of(rows: Sequence[PackedSequence]) -> dict[str, float]:
    """Count what some rows hold.

    Args:
        rows: PackedSequence rows.

    Returns:
        "tokens" (ids that are not padding), "positions" (all), "labels" (ids that are learnt),
        "documents", and "seen": the sum over tokens of the ids that each can look back on.
    """
    real = [row.task_ids != PADDING_TASK for row in rows]
    pairs = list(zip(rows, real, strict=True))
    return {
        "tokens": sum(row.filled for row in rows),
        "positions": sum(len(row.input_ids) for row in rows),
        "labels": sum(int(np.sum(row.labels != IGNORE)) for row in rows),
        "documents": sum(int(np.sum(row.position_ids[mask] == 0)) for row, mask in pairs),
        "seen": sum(int(row.position_ids[mask].sum()) for row, mask in pairs),
    }


def make_trainee(job: Job, config: ModelConfig, precision: torch.dtype) -> LiquidForTraining:
    """Prepare the job's model for our training.

    Args:
        job: Whose model.
        config: How it is computed.
        precision: Type of its products.

    Returns:
        The model on the job's device, in training mode.
    """
    loss = LossConfig(max_z_loss=job.optim.max_z_loss, z_loss=job.optim.z_loss)
    if isinstance(job.source, TrainConfig):
        folder = local_folder(str(job.source.checkpoint))
        processor, _ = load_parts(folder, torch.device("cpu"))
        return load_for_training(
            folder,
            processor.vocabulary,
            config,
            loss,
            world=Distributed(job.device),
            parallel=ParallelConfig(),
            precision=precision,
        )
    model = job.language_model(
        None if config.attn_implementation == "auto" else config.attn_implementation
    )
    rows = job.source.vocabulary
    layout = Vocabulary(
        text_size=rows - 1, image_offset=rows - 1, codebook_size=1, boi=0, eoi=1, unconditional=2
    )
    trainee = prepare(model, layout, config, loss)
    trainee.compute_on(resolve_device(job.device), precision)
    return trainee.train()


def states_and_loss(trainee: LiquidForTraining, batch: Batch) -> tuple[Tensor, float, float]:
    """Run one batch forward and backward.

    Args:
        trainee: A prepared model.
        batch: Rows.

    Returns:
        The last hidden states in float32 on the CPU, (B, T, D); the loss; the gradient's norm.
    """
    kind = batch.input_ids.device.type
    with torch.no_grad(), torch.autocast(kind, trainee.autocast, enabled=bool(trainee.autocast)):
        states = hidden_states(trainee.model, batch).float().cpu()
    result = trainee(batch, len(TASKS))
    result.loss.backward()
    norm = float(nn.utils.clip_grad_norm_(trainee.model.parameters(), math.inf))
    return states, float(result.loss.detach()), norm
