"""Candidates that work as the reference implementation (FoundationVision/Liquid) does.

They are written with the public interface of transformers only. Training is `transformers.Trainer`
on batches padded to their longest sequence, with all logits and the model's own loss. Generation is
a loop that computes the whole head over a concatenated cache and sorts the whole vocabulary in
every step, or `generate` with a static cache; with greedy sampling both give the same codes as our
engine.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PrinterCallback,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.cache_utils import DynamicCache

from _harness import Pacer
from _workloads import GenerationTask, TrainingTask
from liquidmm.data.examples import IGNORE_INDEX, TokenIds
from liquidmm.data.packing import PADDING_TASK, PackedSequence
from liquidmm.generate.sampling import SamplingConfig

_MAX_STEPS = 1 << 30
"""Steps of the Trainer; the pacer ends it earlier."""
_SHUFFLE_BUFFER = 2048
"""Documents to shuffle. Packing puts short documents next to the long ones whose gap they fill, and
batches padded to their longest document would profit from that order."""

Document = tuple[TokenIds, TokenIds]
"""Token ids and unshifted labels of one document."""


def documents(sequences: Iterable[PackedSequence]) -> Iterator[Document]:
    """Yield the ids and labels of each document, (t,) int32 each, in order."""
    for one in sequences:
        starts = np.flatnonzero((one.position_ids == 0) & (one.task_ids != PADDING_TASK))
        for start, end in zip(starts, [*starts[1:], one.num_tokens], strict=True):
            yield one.input_ids[start:end], one.labels[start:end]


def pad(batch: Sequence[Document]) -> dict[str, Tensor]:
    """Pad documents on the right to the longest one.

    Returns:
        "input_ids", "attention_mask" (0 on padding) and "labels" (`IGNORE_INDEX` there), (B, T)
        int64.
    """
    shape = (len(batch), max(len(ids) for ids, _ in batch))
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, (ids, targets) in enumerate(batch):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)] = targets
        mask[row, : len(ids)] = 1
    arrays = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def padded_efficiency(sequences: Iterable[PackedSequence], batch_size: int) -> float:
    """Return the share of non-padding tokens, 0 to 1, in padded batches of the same documents.

    The documents are shuffled, always in the same way; an incomplete last batch is dropped.
    """
    lengths = np.array([len(ids) for ids, _ in documents(sequences)])
    lengths = np.random.default_rng(0).permutation(lengths)
    batches = lengths[: len(lengths) // batch_size * batch_size].reshape(-1, batch_size)
    return float(batches.sum() / (batches.max(axis=1).sum() * batch_size))


def train_padded(task: TrainingTask, batch_size: int, accumulation: int, pacer: Pacer) -> None:
    """Train with `Trainer` on padded batches; counts tokens, documents and time of the data."""
    batches = _PaddedBatches(task)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=task.language_model(),
            args=_arguments(task, folder, batch_size, accumulation),
            train_dataset=batches,
            data_collator=batches.collate,
            callbacks=[_PacedSteps(pacer, batches.counts, accumulation)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class _PaddedBatches(IterableDataset[Document]):
    """The shuffled documents of a task, and their padding."""

    def __init__(self, task: TrainingTask) -> None:
        self.counts: deque[dict[str, float]] = deque()
        """Counts of each batch; the Trainer collates one batch ahead."""
        self._task = task
        self._loading = 0.0

    def __iter__(self) -> Iterator[Document]:
        stream, rng = self._task.open_stream(), np.random.default_rng(0)
        while True:
            start = time.perf_counter()
            buffer: list[Document] = []
            while len(buffer) < _SHUFFLE_BUFFER:
                buffer += documents(stream.next(self._task.streams))
            order = rng.permutation(len(buffer))
            self._loading += time.perf_counter() - start
            yield from (buffer[index] for index in order)

    def collate(self, batch: Sequence[Document]) -> dict[str, Tensor]:
        start = time.perf_counter()
        inputs = pad(batch)
        loading = self._loading + time.perf_counter() - start
        tokens = int(inputs["attention_mask"].sum())
        self.counts.append({"tokens": tokens, "documents": len(batch), "loading": loading})
        self._loading = 0.0
        return inputs


class _PacedSteps(TrainerCallback):
    """Runs the Trainer at the pacer's pace."""

    def __init__(self, pacer: Pacer, counts: deque[dict[str, float]], accumulation: int) -> None:
        self._pacer = pacer
        self._counts = counts
        self._accumulation = accumulation

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._pacer.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for _batch in range(self._accumulation):
            self._pacer.count(**self._counts.popleft())
        if not self._pacer.wait():
            control.should_training_stop = True


def _arguments(
    task: TrainingTask, folder: str, batch_size: int, accumulation: int
) -> TrainingArguments:
    optim = task.optim
    # transformers 5.23 renamed this argument.
    names = ("activation_checkpointing", "gradient_checkpointing")
    known = {each.name for each in fields(TrainingArguments)}
    checkpointing: Any = {names[names[0] not in known]: task.model.activation_checkpointing}
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=_MAX_STEPS,
        learning_rate=optim.lr,
        lr_scheduler_type="constant",
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.grad_clip,
        bf16=task.precision == torch.bfloat16,
        use_cpu=task.device == "cpu",
        dataloader_pin_memory=task.device != "cpu",
        accelerator_config={"dispatch_batches": False},  # one process reads an endless stream
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **checkpointing,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs would share each batch
    return arguments


def generate_reference(task: GenerationTask, pacer: Pacer) -> None:
    """Generate images with the reference loop; counts codes."""
    model = task.language_model()
    steps = (codes for _ in iter(int, 1) for codes in reference_loop(model, task))
    while pacer.wait():
        next(steps)
        pacer.count(codes=task.batch_size)


@torch.inference_mode()
def reference_loop(model: PreTrainedModel, task: GenerationTask) -> Iterator[Tensor]:
    """Generate a batch of images; yields one code of each, (B,), int64."""
    ids, mask = _left_padded_pairs(task)
    cache = DynamicCache(config=model.config)
    image, sampling = task.vocabulary.image_slice, task.sampling
    new = ids
    for _ in range(task.codes):
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = model(
            input_ids=new,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        conditional, unconditional = output.logits[:, -1].float().chunk(2)
        logits = unconditional + sampling.guidance * (conditional - unconditional)
        logits[:, : image.start] = -torch.inf
        tokens = _sample_sorted(logits, sampling)
        new = tokens.repeat(2)[:, None]
        ids = torch.cat([ids, new], dim=1)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        yield tokens - image.start


def _left_padded_pairs(task: GenerationTask) -> tuple[Tensor, Tensor]:
    """Return the ids of all conditional, then all unconditional prompts, and their mask."""
    conditional, unconditional = task.prompts()
    prompts = [*conditional, *[unconditional] * task.batch_size]
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=task.device), torch.tensor(mask, device=task.device)


def _sample_sorted(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Sample one token for each row by sorting the whole vocabulary."""
    if sampling.greedy:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    lowest = torch.topk(logits, sampling.top_k).values[:, -1:]
    logits = logits.masked_fill(logits < lowest, -torch.inf)
    ordered, order = torch.sort(logits, descending=True)
    probabilities = ordered.softmax(dim=-1)
    dropped = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
    logits = logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)[:, 0]


def generate_static(task: GenerationTask, pacer: Pacer) -> None:
    """Generate images with `generate` and its static cache; counts codes."""
    model = task.language_model()

    def on_step(_: Tensor) -> None:
        pacer.count(codes=task.batch_size)
        if not pacer.wait():
            raise _DoneError

    if pacer.wait():  # the first step; `on_step` waits for the others
        with contextlib.suppress(_DoneError):
            while True:
                static_generate(model, task, on_step)


class _DoneError(Exception):
    """The pacer ended the candidate inside `generate`."""


def static_generate(
    model: PreTrainedModel, task: GenerationTask, on_step: Callable[[Tensor], None]
) -> None:
    """Generate a batch of images; ``on_step`` receives the codes of each step, (B,)."""
    ids, mask = _left_padded_pairs(task)
    cast("Any", model).generate(
        ids,
        attention_mask=mask,
        max_new_tokens=task.codes,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="static",
        logits_processor=LogitsProcessorList([_GuidedPairs(task, on_step)]),
    )


class _GuidedPairs(LogitsProcessor):
    """Samples a code for each guided pair and leaves both of its rows only that token."""

    def __init__(self, task: GenerationTask, on_step: Callable[[Tensor], None]) -> None:
        sampling = task.sampling
        self._image = task.vocabulary.image_slice
        self._sampling = sampling
        self._on_step = on_step
        self._filters = LogitsProcessorList(
            [
                TemperatureLogitsWarper(sampling.temperature),
                TopKLogitsWarper(sampling.top_k),
                TopPLogitsWarper(sampling.top_p),
            ]
        )

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        conditional, unconditional = scores[:, self._image].float().chunk(2)
        logits = unconditional + self._sampling.guidance * (conditional - unconditional)
        if self._sampling.greedy:
            codes = logits.argmax(dim=-1)
        else:
            probabilities = self._filters(input_ids, logits).softmax(dim=-1)
            codes = torch.multinomial(probabilities, num_samples=1)[:, 0]
        self._on_step(codes)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, (codes + self._image.start).repeat(2)[:, None], 0.0)
