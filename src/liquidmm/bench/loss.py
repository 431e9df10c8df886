"""The loss over a large vocabulary: ours beside full logits and beside PyTorch's own operator.

Contract: all methods compute the same number from the same inputs, float32 hidden states and a head
whose gradients are both wanted: the mean negative log-likelihood plus max-z. A step is forward and
backward. Memory is the peak above a process that holds the inputs, so gradients count. Every method
runs with the process settings of our training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquidmm.bench.memory import available
from liquidmm.bench.report import Result
from liquidmm.bench.worker import EndedError, Lap, Pacer, Worker, alternate
from liquidmm.errors import ConfigError
from liquidmm.runtime import generator, resolve_device, tune_cpu_allocator
from liquidmm.train.loss import Head, LossConfig, next_token_loss

MAX_Z = 2e-4
"""Weight of the squared largest logit (paper)."""
CHUNK = 128
"""Rows that PyTorch's operator computes at a time."""
_ROUNDS = 3
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSizes:
    """How large the measured loss is."""

    tokens: int = 8192
    """Positions with a label, for the memory."""
    timed_tokens: int = 1024
    """Positions with a label, for the time; fewer where full logits don't fit."""
    vocabulary: int = 264_192
    """Rows of the head (the release: 256,000 of Gemma and 8,192 codes)."""
    hidden: int = 512
    """Width of the hidden states."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("tokens", 2), ("timed_tokens", 2), ("vocabulary", 2), ("hidden", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least} ({getattr(self, name)}).")
        if self.timed_tokens > self.tokens:
            raise ConfigError(
                f"timed_tokens: must be at most tokens ({self.timed_tokens} of {self.tokens})."
            )


def ours(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the loss with `next_token_loss`, as it is set by default.

    Args:
        hidden: Hidden states, (N, D).
        weight: Head, (V, D).
        label: Labels, (N,).

    Returns:
        The loss, scalar.
    """
    config = LossConfig(max_z_loss=MAX_Z)
    task_ids = torch.zeros_like(label)[None]
    return next_token_loss(
        hidden[None], Head(weight=weight), label[None], task_ids, config, tasks=1
    ).loss


def naive(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the same from full float32 logits by autograd; see `ours`."""
    logits = functional.linear(hidden, weight)
    largest = logits.max(dim=-1).values
    return functional.cross_entropy(logits, label) + MAX_Z * largest.square().mean()


def fused(hidden: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Compute the same with `torch.nn.functional.linear_cross_entropy` (PyTorch 2.13); see `ours`.

    The operator gives no largest logit. Its place is found in chunks without gradients; the product
    of hidden state and that row of the head then carries the gradient.
    """
    operator: Any = getattr(functional, "linear_cross_entropy")  # noqa: B009 - not in every PyTorch
    options = getattr(nn, "LinearCrossEntropyOptions")(batch_chunk_size=CHUNK)  # noqa: B009
    nll = operator(hidden, weight, label, reduction="none", options=options)
    with torch.no_grad():
        parts = [functional.linear(part, weight).argmax(-1) for part in torch.split(hidden, CHUNK)]
    largest = (hidden * functional.embedding(torch.cat(parts), weight)).sum(-1)
    total: Tensor = nll.mean() + MAX_Z * largest.square().mean()
    return total


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "naive": naive,
    "torch": fused,
}
"""Name -> loss of hidden states, head and labels."""


def has_operator() -> bool:
    """Tell whether this PyTorch has `linear_cross_entropy`."""
    return hasattr(functional, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions")


def loss_side(pacer: Pacer, method: str, tokens: int, sizes: LossSizes) -> None:
    """Compute a loss and its gradients, as often as the pacer says go; counts the loss.

    Args:
        pacer: Says when.
        method: A key of `METHODS`.
        tokens: Positions with a label.
        sizes: The other sizes.
    """
    tune_cpu_allocator()
    source = generator(0)
    hidden = torch.randn(tokens, sizes.hidden, generator=source).to(pacer.device)
    weight = torch.empty(sizes.vocabulary, sizes.hidden).normal_(0, 0.05, generator=source)
    weight = weight.to(pacer.device)
    label = torch.randint(sizes.vocabulary, (tokens,), generator=source).to(pacer.device)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), label)
    pacer.memory.mark()
    while pacer.go():
        hidden.grad = weight.grad = None
        loss = METHODS[method](*inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        pacer.count(loss=float(loss.detach()))
        del loss


def measure_loss(
    result: Result,
    sizes: LossSizes,
    device: str,
    seconds: float,
    progress: Callable[[str], None],
) -> None:
    """Measure time and memory of the methods.

    Args:
        result: Where figures go, or the reasons why there are none.
        sizes: How large.
        device: Where it is computed.
        seconds: Time for the laps by turns, about; a step at all tokens that would take longer than
            this is not made.
        progress: Told what is being done.
    """
    bench = _LossBench(result, sizes, device, seconds, progress)
    bench.time()
    bench.weigh()


class _LossBench:
    """One measurement: first the time of each method, then its memory."""

    def __init__(
        self,
        result: Result,
        sizes: LossSizes,
        device: str,
        seconds: float,
        progress: Callable[[str], None],
    ) -> None:
        self.result = result
        self.sizes = sizes
        self.device = device
        self.seconds = seconds
        self.progress = progress
        self.timed = sizes.timed_tokens
        while self.timed > 2 and not self.fits(self.timed):
            self.timed //= 2
        self.laps: dict[str, list[Lap]] = {}
        self.step: dict[str, float] = {}
        self.settings: dict[str, Any] = asdict(sizes) | {
            "timed_tokens": self.timed,
            "max_z": MAX_Z,
            "precision": "float32",
            "chunk_rows": LossConfig().positions(sizes.vocabulary, torch.device(device)),
            "torch_chunk_rows": CHUNK,
        }
        result.settings["loss"] = self.settings

    def time(self) -> None:
        """Time the methods by turns, at a size that all of them can run."""
        note = f"{self.timed:,} tokens"
        methods = [name for name in METHODS if name != "torch" or has_operator()]
        self.progress(f"loss of {note}: {', '.join(methods)} by turns")
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    Worker(loss_side, self.device, name, self.timed, self.sizes)
                )
                for name in methods
            }
            self.laps, ended = alternate(workers, seconds=self.seconds, rounds=_ROUNDS, warm=1)
        if "torch" not in methods:
            ended["torch"] = "this PyTorch has no linear_cross_entropy (2.13 has)"
        for name, laps in self.laps.items():
            self.step[name] = statistics.median(lap.seconds / lap.steps for lap in laps)
            self.result.number(f"loss_seconds{_suffix(name)}", self.step[name], "s", note)
            self.settings["rounds"] = len(laps)
        for name, reason in ended.items():
            self.result.lacks(f"loss_seconds{_suffix(name)}", reason)
            self.result.lacks(f"loss_peak_memory{_suffix(name)}", reason)
        if {"ours", "naive"} <= self.step.keys():
            ratio = self.step["naive"] / self.step["ours"]
            self.result.number("loss_speed_ratio", ratio, "x", note)
        else:
            self.result.lacks("loss_speed_ratio", "one of its two times is missing")

    def weigh(self) -> None:
        """Measure the peak of each method at all tokens, in fresh processes one by one."""
        peaks: dict[str, float] = {}
        for name in self.step:
            figure = f"loss_peak_memory{_suffix(name)}"
            try:
                peak, note = self.peak_of(name)
            except EndedError as error:
                self.result.lacks(figure, str(error))
                continue
            peaks[name] = peak
            self.result.number(figure, peak / _GIB, "GiB", note)
        if {"ours", "naive"} <= peaks.keys():
            note = f"full logits: {self.result.notes['loss_peak_memory_naive']}"
            ratio = peaks["naive"] / max(1, peaks["ours"])
            self.result.number("loss_peak_memory_ratio", ratio, "x", note)
        else:
            self.result.lacks("loss_peak_memory_ratio", "one of its two peaks is missing")

    def peak_of(self, name: str) -> tuple[float, str]:
        """Give a method's peak at all tokens in bytes, and how it was come by.

        Raises:
            EndedError: It can't be told.
        """
        tokens = self.sizes.tokens
        note = f"{tokens:,} tokens"
        long = self.step[name] * tokens / self.timed
        if name == "naive" and (long > self.seconds or not self.fits(tokens)):
            half = max(1, self.timed // 2)
            self.settings["naive_measured_at_tokens"] = [half, self.timed]
            low, high = _memory(self.lap(name, half)), _memory(self.laps[name][-1])
            peak = high + (high - low) / (self.timed - half) * (tokens - self.timed)
            return peak, f"extrapolated linearly to {note} from {half:,} and {self.timed:,}"
        if long > self.seconds:
            raise EndedError(f"{note} would take about {long:.0f} s")
        lap = self.lap(name, tokens)
        if name == "naive":
            self.settings["naive_measured_at_tokens"] = [tokens]
        seconds = f"loss_seconds_all_tokens{_suffix(name)}"
        self.result.number(seconds, lap.seconds, "s", f"{note}, one step in a fresh process")
        return _memory(lap), note

    def lap(self, name: str, tokens: int) -> Lap:
        """Make one step of so many tokens in a fresh process."""
        self.progress(f"loss of {tokens:,} tokens: memory of {name}")
        with Worker(loss_side, self.device, name, tokens, self.sizes) as worker:
            return worker.lap()

    def fits(self, tokens: int) -> bool:
        """Tell whether full logits of so many tokens fit into four fifths of the free memory."""
        rows, hidden = self.sizes.vocabulary, self.sizes.hidden
        # Logits, their logarithms, the gradients of both and what they add up to; three tables of
        # each of three processes.
        need = 4 * (5 * tokens * rows + 9 * rows * hidden)
        free = available(resolve_device(self.device))
        return free is None or need <= 0.8 * free


def _memory(lap: Lap) -> int:
    if lap.memory is None:
        raise EndedError("this system doesn't tell a process's peak")
    return lap.memory


def _suffix(name: str) -> str:
    return "" if name == "ours" else f"_{name}"
