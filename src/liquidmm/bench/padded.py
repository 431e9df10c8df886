"""The release's way of training as one side of a comparison: `transformers.Trainer` and padding.

Contract: it gets the documents of our packed rows, in a random order, as batches of so many
sequences that are padded to the longest one, with an attention mask; the model computes all logits
and its own loss of them. Nothing of our training takes part. `tokens` counts ids that are not
padding, `positions` all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from liquidmm.bench.job import Job
from liquidmm.bench.worker import Pacer
from liquidmm.data.examples import IGNORE, Ids
from liquidmm.data.packing import PADDING_TASK, PackedSequence

_ENDLESS = 1 << 30
"""Steps that Trainer is told; the pacer ends it before."""

_POOL = 2048
"""Documents that are brought into a random order at a time: in our rows, long ones stand beside
short ones that fill the gap, and a batch padded to its longest would profit from that."""

Document = tuple[Ids, Ids]
"""Ids and unshifted labels of one sequence."""


def documents(rows: Iterable[PackedSequence]) -> Iterator[Document]:
    """Take packed rows apart.

    Args:
        rows: PackedSequence rows.

    Yields:
        Ids and labels of each document, (t,) int32 each, in the order of the rows.
    """
    for row in rows:
        starts = np.flatnonzero((row.position_ids == 0) & (row.task_ids != PADDING_TASK))
        for start, end in zip(starts, [*starts[1:], row.filled], strict=True):
            yield row.input_ids[start:end], row.labels[start:end]


def padded(batch: Sequence[Document]) -> dict[str, Tensor]:
    """Pad sequences to the longest one, on the right.

    Args:
        batch: Sequences.

    Returns:
        "input_ids", "attention_mask" (0 on padding) and "labels" (`IGNORE` there), all (B, T)
        int64.
    """
    shape = (len(batch), max(len(ids) for ids, _ in batch))
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for place, (ids, learnt) in enumerate(batch):
        input_ids[place, : len(ids)] = ids
        labels[place, : len(ids)] = learnt
        mask[place, : len(ids)] = 1
    arrays = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def padded_share(rows: Iterable[PackedSequence], size: int) -> float:
    """Give the share of positions that are no padding, in padded batches of packed rows' documents.

    The documents are in a random order, the same every time.

    Args:
        rows: PackedSequence rows.
        size: Sequences in a batch; those left over at the end make no batch.

    Returns:
        The share, 0 to 1.
    """
    lengths = np.array([len(ids) for ids, _ in documents(rows)])
    lengths = np.random.default_rng(0).permutation(lengths)
    batches = lengths[: len(lengths) // size * size].reshape(-1, size)
    return float(batches.sum() / (batches.max(axis=1).sum() * size))


def train_padded(pacer: Pacer, job: Job, size: int, accumulate: int) -> None:
    """Train the release's way, as long as the pacer says go.

    Args:
        pacer: Says when to do a step.
        job: What to train.
        size: Sequences in a batch.
        accumulate: Batches in an optimizer step.
    """
    batches = _Batches(job)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=job.language_model(),
            args=_arguments(job, folder, size, accumulate),
            train_dataset=batches,
            data_collator=batches.collate,
            callbacks=[_Steps(pacer, batches.take_counts, accumulate)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class _Batches(IterableDataset[Document]):
    """The documents of the job's rows, and the padding of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._counts: deque[dict[str, float]] = deque()
        self._drawing = 0.0

    def __iter__(self) -> Iterator[Document]:
        stream, rng = self._job.rows(), np.random.default_rng(0)
        while True:
            began = time.perf_counter()
            pool: list[Document] = []
            while len(pool) < _POOL:
                pool += documents(stream.take(self._job.lanes))
            order = rng.permutation(len(pool))
            self._drawing += time.perf_counter() - began
            yield from (pool[place] for place in order)

    def collate(self, batch: Sequence[Document]) -> dict[str, Tensor]:
        began = time.perf_counter()
        inputs = padded(batch)
        drawing = self._drawing + time.perf_counter() - began
        self._counts.append(
            {
                "tokens": int(inputs["attention_mask"].sum()),
                "positions": inputs["attention_mask"].numel(),
                "documents": len(batch),
                "drawing": drawing,
            }
        )
        self._drawing = 0.0
        return inputs

    def take_counts(self) -> dict[str, float]:
        """Counts of the oldest batch; Trainer collates one ahead of what it trains on."""
        return self._counts.popleft()


class _Steps(TrainerCallback):
    """Lets Trainer work at the pacer's word."""

    def __init__(
        self, pacer: Pacer, counts: Callable[[], dict[str, float]], accumulate: int
    ) -> None:
        self._pacer = pacer
        self._counts = counts
        self._accumulate = accumulate

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pacer.go()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for _batch in range(self._accumulate):
            self._pacer.count(**self._counts())
        if not self._pacer.go():
            control.should_training_stop = True


def _arguments(job: Job, folder: str, size: int, accumulate: int) -> TrainingArguments:
    optim = job.optim
    names = {each.name for each in fields(TrainingArguments)}
    # The name of transformers 5.23 and later; before, it was the other one.
    new, old = "activation_checkpointing", "gradient_checkpointing"
    recompute: dict[str, Any] = {new if new in names else old: job.model.activation_checkpointing}
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        max_steps=_ENDLESS,
        learning_rate=optim.lr,
        lr_scheduler_type="constant",
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.grad_clip,
        bf16=job.precision == torch.bfloat16,
        use_cpu=job.device == "cpu",
        dataloader_pin_memory=job.device != "cpu",
        # One process reads an endless stream: nothing is to be sent around.
        accelerator_config={"dispatch_batches": False},
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **recompute,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would share each batch
    return arguments
