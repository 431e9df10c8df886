"""The loss over a large vocabulary: ours, full logits, and PyTorch's own operator.

All methods compute the same number from the same inputs, float32 hidden states and a head, both
with gradients: the mean negative log-likelihood plus max-z. A step is forward and backward. Memory
is the peak above a process that has the inputs, so gradients count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from _harness import CandidateError, Comparison, Pacer, Round, available_memory, compare, run_once
from _results import Result, progress
from liquidmm.runtime import generator, resolve_device, tune_cpu_allocator
from liquidmm.train.loss import Head, LossConfig, next_token_loss

MAX_Z = 2e-4
"""Weight of the squared largest logit (paper)."""
CHUNK = 128
"""Rows that PyTorch's operator computes at a time."""
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSizes:
    """The size of the loss."""

    tokens: int = 8192
    """Labels, for the memory."""
    timed_tokens: int = 1024
    """Labels, for the time; fewer if full logits do not fit."""
    vocabulary: int = 264_192
    """Rows of the head (reference: 256,000 of Gemma and 8,192 codes)."""
    hidden: int = 512


def ours(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the loss of hidden states, (N, D), a head, (V, D), and labels, (N,)."""
    config = LossConfig(max_z_loss=MAX_Z)
    task_ids = torch.zeros_like(label)[None]
    return next_token_loss(
        hidden[None], Head(weight=weight), label[None], task_ids, config, tasks=1
    ).loss


def naive(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the same from full float32 logits with autograd."""
    logits = functional.linear(hidden, weight)
    largest = logits.max(dim=-1).values
    return functional.cross_entropy(logits, label) + MAX_Z * largest.square().mean()


def fused(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the same with `torch.nn.functional.linear_cross_entropy` (PyTorch 2.13).

    The operator does not return the largest logit. Its row is found in chunks without gradients;
    the product of the hidden state and that row of the head has the gradient.
    """
    operator: Any = getattr(functional, "linear_cross_entropy")  # noqa: B009 - not in every PyTorch
    options = getattr(nn, "LinearCrossEntropyOptions")(batch_chunk_size=CHUNK)  # noqa: B009
    nll = operator(hidden, weight, label, reduction="none", options=options)
    with torch.no_grad():
        rows = [functional.linear(part, weight).argmax(-1) for part in torch.split(hidden, CHUNK)]
    largest = (hidden * functional.embedding(torch.cat(rows), weight)).sum(-1)
    total: Tensor = nll.mean() + MAX_Z * largest.square().mean()
    return total


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "naive": naive,
    "torch": fused,
}


def has_operator() -> bool:
    """Return whether this PyTorch has `linear_cross_entropy`."""
    return hasattr(functional, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions")


def compute_loss(method: str, tokens: int, sizes: LossSizes, pacer: Pacer) -> None:
    """Compute a loss and its gradients per step; counts the loss."""
    tune_cpu_allocator()
    source = generator(0)
    hidden = torch.randn(tokens, sizes.hidden, generator=source).to(pacer.device)
    weight = torch.empty(sizes.vocabulary, sizes.hidden).normal_(0, 0.05, generator=source)
    weight = weight.to(pacer.device)
    label = torch.randint(sizes.vocabulary, (tokens,), generator=source).to(pacer.device)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), label)
    pacer.memory.mark()
    while pacer.wait():
        hidden.grad = weight.grad = None
        loss = METHODS[method](*inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        pacer.count(loss=float(loss.detach()))
        del loss


@dataclass(kw_only=True)
class LossBenchmark:
    """The time of each method, then its memory."""

    result: Result
    sizes: LossSizes
    device: str
    seconds: float
    """Time of all rounds; a step on all tokens that would take longer is skipped."""
    free_memory: int | None = None
    """Bytes that may be used; None if unknown."""
    compared: Comparison = field(default_factory=lambda: Comparison({}, {}))

    def __post_init__(self) -> None:
        self.timed = self.sizes.timed_tokens
        while self.timed > 2 and not self._fits(self.timed):
            self.timed //= 2
        chunk = LossConfig().positions(self.sizes.vocabulary, torch.device(self.device))
        self.settings: dict[str, Any] = asdict(self.sizes) | {
            "timed_tokens": self.timed,
            "max_z_loss": MAX_Z,
            "precision": "float32",
            "chunk_rows": chunk,
            "torch_chunk_rows": CHUNK,
        }
        self.result.settings["loss"] = self.settings

    def measure_time(self) -> None:
        """Time all methods at a size that all of them can run."""
        note = f"{self.timed:,} tokens"
        methods = [name for name in METHODS if name != "torch" or has_operator()]
        progress(f"loss of {note}: {', '.join(methods)}, interleaved")
        self.compared = compare(
            {name: partial(compute_loss, name, self.timed, self.sizes) for name in methods},
            self.device,
            seconds=self.seconds,
            rounds=3,
            warmup=1,
        )
        times = {name: self.compared.step_seconds(name) for name in self.compared.rounds}
        for name, seconds in times.items():
            self.result.add(f"loss_seconds{_suffix(name)}", seconds, "s", note)
            self.settings["rounds"] = len(self.compared.rounds[name])
        failures = dict(self.compared.failures)
        if "torch" not in methods:
            failures["torch"] = "this PyTorch has no linear_cross_entropy (2.13 has)"
        for name, reason in failures.items():
            self.result.skip(f"loss_seconds{_suffix(name)}", reason)
            self.result.skip(f"loss_peak_memory{_suffix(name)}", reason)
        self.result.add_ratio("loss_speed_ratio", times.get("naive"), times.get("ours"), note)

    def measure_memory(self) -> None:
        """Measure the peak of each method on all tokens, in fresh processes."""
        peaks: dict[str, float] = {}
        for name in self.compared.rounds:
            figure = f"loss_peak_memory{_suffix(name)}"
            try:
                peak, note = self._peak(name)
            except CandidateError as error:
                self.result.skip(figure, str(error))
                continue
            peaks[name] = peak
            self.result.add(figure, peak / _GIB, "GiB", note)
        note = f"full logits: {self.result.notes.get('loss_peak_memory_naive')}"
        ours, naive = peaks.get("ours"), peaks.get("naive")
        self.result.add_ratio(
            "loss_peak_memory_ratio", naive, None if ours is None else max(1, ours), note
        )

    def _peak(self, name: str) -> tuple[float, str]:
        """Return the peak of a method on all tokens in bytes, and how it was measured."""
        tokens = self.sizes.tokens
        note = f"{tokens:,} tokens"
        expected = self.compared.step_seconds(name) * tokens / self.timed
        if name == "naive" and (expected > self.seconds or not self._fits(tokens)):
            half = max(1, self.timed // 2)
            self.settings["naive_measured_at_tokens"] = [half, self.timed]
            low = _memory(self._step(name, half))
            high = _memory(self.compared.rounds[name][-1])
            peak = high + (high - low) / (self.timed - half) * (tokens - self.timed)
            return peak, f"extrapolated linearly to {note} from {half:,} and {self.timed:,}"
        if expected > self.seconds:
            raise CandidateError(f"{note} would take about {expected:.0f} s")
        done = self._step(name, tokens)
        if name == "naive":
            self.settings["naive_measured_at_tokens"] = [tokens]
        figure = f"loss_seconds_all_tokens{_suffix(name)}"
        self.result.add(figure, done.seconds, "s", f"{note}, one step in a fresh process")
        return _memory(done), note

    def _step(self, name: str, tokens: int) -> Round:
        progress(f"loss of {tokens:,} tokens: memory of {name}")
        return run_once(partial(compute_loss, name, tokens, self.sizes), self.device)

    def _fits(self, tokens: int) -> bool:
        """Return whether full logits of so many tokens fit into four fifths of the free memory."""
        rows, hidden = self.sizes.vocabulary, self.sizes.hidden
        # Logits, their logarithms, the gradients of both and their sum; three tables of each of
        # three processes.
        need = 4 * (5 * tokens * rows + 9 * rows * hidden)
        free = self.free_memory
        if free is None:
            free = available_memory(resolve_device(self.device))
        return free is None or need <= 0.8 * free


def _memory(done: Round) -> int:
    if done.memory is None:
        raise CandidateError("this system does not report the peak memory of a process")
    return done.memory


def _suffix(name: str) -> str:
    return "" if name == "ours" else f"_{name}"
