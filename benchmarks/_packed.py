"""Our training as a candidate: packed sequences, the loss without full logits, AdamW.

A step does what a step of `liquid train` does, the loading of its data included; evaluation,
checkpoints and logging are excluded for all candidates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from _harness import Pacer
from _workloads import TrainingTask
from liquidmm.data.examples import IGNORE_INDEX, TASKS
from liquidmm.data.packing import PADDING_TASK, PackedSequence
from liquidmm.model.checkpoint import load_parts, local_folder
from liquidmm.runtime import resolve_device, tune_cpu_allocator
from liquidmm.train.batch import Batch
from liquidmm.train.config import TrainConfig
from liquidmm.train.distributed import Distributed, ParallelConfig
from liquidmm.train.loss import LossConfig
from liquidmm.train.metrics import LossMeter
from liquidmm.train.model import (
    LiquidForTraining,
    ModelConfig,
    hidden_states,
    load_for_training,
    prepare,
)
from liquidmm.train.optim import build_optimizers, clip_gradients, optimizer_step
from liquidmm.train.trainer import forward_backward
from liquidmm.vocabulary import Vocabulary

_CHECKED_SEQUENCES = 2


def train_packed(task: TrainingTask, pacer: Pacer) -> None:
    """Train as `liquid train` does; counts tokens and the time of the data."""
    tune_cpu_allocator()
    trainee = prepare_model(task, task.model, task.precision)
    optimizers = build_optimizers(trainee.model, task.optim)
    world, size = Distributed(task.device), task.loop.micro_batch_size
    stream = task.open_stream()
    while pacer.wait():
        start = time.perf_counter()
        sequences = stream.next(task.streams)
        batch = Batch.from_sequences(sequences, pacer.device)
        loading = time.perf_counter() - start
        meter = LossMeter(TASKS)
        targets = int(batch.num_targets)
        forward_backward(trainee, batch, targets, meter, world, micro_batch_size=size)
        norm = clip_gradients(optimizers, task.optim.grad_clip)
        assert math.isfinite(norm), "the gradient is not finite"
        meter.report()
        optimizer_step(optimizers, task.optim.lr)
        pacer.count(loading=loading, **count(sequences))


def count(sequences: Sequence[PackedSequence]) -> dict[str, float]:
    """Count the tokens of sequences that are not padding.

    Returns:
        "tokens", "labels" (tokens that are trained on), "documents", and "context": the sum over
        tokens of the earlier tokens that each can attend to.
    """
    real = [one.position_ids[one.task_ids != PADDING_TASK] for one in sequences]
    return {
        "tokens": sum(one.num_tokens for one in sequences),
        "labels": sum(int(np.sum(one.labels != IGNORE_INDEX)) for one in sequences),
        "documents": sum(int(np.sum(positions == 0)) for positions in real),
        "context": sum(int(positions.sum()) for positions in real),
    }


def prepare_model(
    task: TrainingTask, config: ModelConfig, precision: torch.dtype
) -> LiquidForTraining:
    """Prepare the model of a task for our training, on its device and in training mode."""
    loss = LossConfig(max_z_loss=task.optim.max_z_loss, z_loss=task.optim.z_loss)
    if isinstance(task.source, TrainConfig):
        folder = local_folder(str(task.source.checkpoint))
        processor, _ = load_parts(folder, torch.device("cpu"))
        return load_for_training(
            folder,
            processor.vocabulary,
            config,
            loss,
            world=Distributed(task.device),
            parallel=ParallelConfig(),
            precision=precision,
        )
    attention = config.attn_implementation
    model = task.language_model(None if attention == "auto" else attention)
    rows = task.source.config.vocab_size
    vocabulary = Vocabulary(
        text_size=rows - 1, image_offset=rows - 1, codebook_size=1, boi=0, eoi=1, unconditional=2
    )
    trainee = prepare(model, vocabulary, config, loss)
    trainee.compute_on(resolve_device(task.device), precision)
    return trainee.train()


def compare_paths(task: TrainingTask, pacer: Pacer) -> None:
    """Compare the fast path of a task with float32 and sdpa; counts the three differences."""
    sequences = task.open_stream().next(range(_CHECKED_SEQUENCES))
    batch = Batch.from_sequences(sequences, pacer.device)
    plain = replace(task.model, attn_implementation="sdpa", compile=False)
    real = batch.task_ids.cpu() >= 0
    while pacer.wait():
        states, loss, norm = _forward_backward(task, plain, torch.float32, batch)
        fast_states, fast_loss, fast_norm = _forward_backward(
            task, task.model, task.precision, batch
        )
        difference = (fast_states - states)[real].norm() / states[real].norm()
        pacer.count(
            loss=abs(fast_loss - loss),
            state=float(difference),
            gradient=abs(fast_norm - norm) / norm,
        )


def _forward_backward(
    task: TrainingTask, config: ModelConfig, precision: torch.dtype, batch: Batch
) -> tuple[Tensor, float, float]:
    """Return the last hidden states in float32 on the CPU, the loss and the gradient norm."""
    trainee = prepare_model(task, config, precision)
    kind = batch.input_ids.device.type
    with torch.no_grad(), torch.autocast(kind, trainee.autocast, enabled=bool(trainee.autocast)):
        states = hidden_states(trainee.model, batch).float().cpu()
    result = trainee(batch, len(TASKS))
    result.loss.backward()
    norm = float(nn.utils.clip_grad_norm_(trainee.model.parameters(), math.inf))
    return states, float(result.loss.detach()), norm
