"""Next-token loss over a large vocabulary, computed from hidden states.

Contract: the full float32 logits of a batch never exist. Only positions that carry a label are
computed, a chunk of them at a time, and a chunk's gradient is taken while its logits are at hand:
nothing is kept and nothing is computed twice. Everything a run reports (log-likelihood and hits
for each task) comes from the same pass. Labels come in unshifted: `targets` shifts them.

Max-z is Baichuan 2's stabilizer (Yang et al. 2023, section 2.6) as Liquid uses it: a weight times
the square of the largest logit, averaged over the positions that carry a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from liquidmm.data.examples import IGNORE
from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.train.lora import unwrapped, weight_of


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What is added to the cross-entropy, and how much is computed at once."""

    max_z_loss: float = 0.0
    """Weight of the squared largest logit; 0 leaves it out."""
    z_loss: float = 0.0
    """Weight of the squared log-sum-exp; 0 leaves it out."""
    chunk_logits: int = 0
    """Logits computed at a time, in float32; 0 chooses: 16 MiB on a CPU, which stay in its cache,
    and 512 MiB on a GPU, but never fewer than those of 128 positions, since each chunk reads the
    whole head."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_z_loss", "z_loss"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be 0 or more ({getattr(self, name)}).")
        if self.chunk_logits < 0:
            raise ConfigError(f"chunk_logits: must be 0 or more ({self.chunk_logits}).")

    def positions(self, vocabulary: int, device: torch.device) -> int:
        """Give the positions that are computed at a time for a head of so many rows."""
        if self.chunk_logits:
            return max(1, self.chunk_logits // vocabulary)
        wanted = 1 << (27 if device.type == "cuda" else 22)
        return max(128, wanted // vocabulary)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The output layer of a language model, as the loss needs it."""

    weight: Tensor
    """Rows of the head, (V, D)."""
    scale: float = 1.0
    """What logits are multiplied with (Cohere, Granite)."""
    softcap: float | None = None
    """Bound c of ``c tanh(logit / c)`` (Gemma 2); None where there is none."""


class LossResult(NamedTuple):
    """The loss of one batch and what is counted beside it; a tuple, so that FSDP sees the loss."""

    loss: Tensor
    """What to differentiate, scalar, float32 or float64."""
    nll: Tensor
    """Sum of negative log-likelihoods for each task in nats, (tasks,), detached."""
    correct: Tensor
    """Positions whose largest logit is the label, for each task, (tasks,), detached."""
    counts: Tensor
    """Positions with a label, for each task, (tasks,), detached."""


def head_of(model: PreTrainedModel) -> Head:
    """Read the output layer of a Hugging Face decoder.

    Args:
        model: Any causal language model.

    Returns:
        Its head; the weight is the live parameter.

    Raises:
        CheckpointError: The head isn't one matrix without a bias.
    """
    layer: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    plain = unwrapped(layer)
    if not isinstance(plain, nn.Linear) or cast("Tensor | None", plain.bias) is not None:
        raise CheckpointError(
            f"{type(model).__name__}: its head is no plain matrix ({type(plain).__name__}). "
            "Use a decoder whose head is a linear layer without bias."
        )
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight=weight_of(layer), scale=scale, softcap=softcap)


def targets(labels: Tensor, position_ids: Tensor) -> Tensor:
    """Shift labels so that each position holds what comes next in its document.

    Args:
        labels: Unshifted labels, (B, T); `IGNORE` where nothing is trained.
        position_ids: Positions, (B, T), starting at 0 with every document of a row.

    Returns:
        Targets, (B, T), int64; the last position of every document is `IGNORE`.
    """
    shifted = torch.full_like(labels, IGNORE, dtype=torch.int64)
    shifted[:, :-1] = labels[:, 1:].masked_fill(position_ids[:, 1:] == 0, IGNORE)
    return shifted


def next_token_loss(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    task_ids: Tensor,
    config: LossConfig,
    *,
    tasks: int,
    denominator: int | None = None,
) -> LossResult:
    """Compute the loss of hidden states under a head.

    Under autocast the products run in its type, everything after them in float32 (or in float64,
    for such inputs).

    Args:
        hidden: Last hidden states, (B, T, D).
        head: The output layer.
        target: Shifted labels, (B, T), from `targets`.
        task_ids: Task of every position, (B, T), from 0 to ``tasks`` - 1 where there is a label.
        config: Stabilizers and chunk size.
        tasks: Number of tasks.
        denominator: Labelled positions of the whole step, where this batch is a part of it; None
            for those of this batch. 0 positions give a loss of 0.

    Returns:
        The loss and its parts.
    """
    labelled = (target != IGNORE).flatten().nonzero().squeeze(1)  # (N,)
    label = target.flatten()[labelled]
    task = task_ids.flatten()[labelled].long()
    rows = hidden.flatten(0, 1)[labelled]  # (N, D)
    if head.scale != 1.0:
        rows = rows * head.scale
    if torch.is_autocast_enabled(hidden.device.type):
        rows = rows.to(torch.get_autocast_dtype(hidden.device.type))
    weights = _Weights(
        denominator=max(1, len(label) if denominator is None else denominator),
        softcap=head.softcap,
        config=config,
        gradient=torch.is_grad_enabled(),
    )
    loss, nll, correct = cast("Any", _HeadLoss).apply(rows, head.weight, label, weights)

    def per_task(values: Tensor) -> Tensor:
        zeros = torch.zeros(tasks, dtype=torch.float32, device=values.device)
        return zeros.index_add_(0, task, values.float())

    return LossResult(
        loss=loss,
        nll=per_task(nll),
        correct=per_task(correct),
        counts=per_task(torch.ones_like(nll)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    denominator: int
    softcap: float | None
    config: LossConfig
    gradient: bool


class _HeadLoss(torch.autograd.Function):
    """Head and loss in one: the gradient is computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, label: Tensor, weights: _Weights
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(rows.dtype, torch.float32)
        want_rows = weights.gradient and ctx.needs_input_grad[0]
        want_weight = weights.gradient and ctx.needs_input_grad[1]
        nll = torch.zeros(len(rows), dtype=exact, device=rows.device)
        correct = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        total = torch.zeros((), dtype=exact, device=rows.device)
        rows_grad = torch.empty_like(rows) if want_rows else None
        # Many chunks add up here: in bfloat16 the small ones would get lost.
        weight_grad = torch.zeros_like(weight, dtype=exact) if want_weight else None
        with torch.autocast(rows.device.type, enabled=False):
            table = weight.to(rows.dtype)
            size = weights.config.positions(len(table), rows.device)
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                logits = functional.linear(rows[part], table).to(exact)  # (n, V)
                if weights.softcap is not None:
                    logits.div_(weights.softcap).tanh_().mul_(weights.softcap)
                nll[part], correct[part], extra, slope = _score(
                    logits, label[part], weights, want_rows or want_weight
                )
                total += nll[part].sum() + extra
                if slope is None:
                    continue
                slope = slope.to(rows.dtype)
                if rows_grad is not None:
                    rows_grad[part] = slope @ table
                if weight_grad is not None and weight_grad.dtype == rows.dtype:
                    weight_grad.addmm_(slope.T, rows[part])
                elif weight_grad is not None:
                    weight_grad += slope.T @ rows[part]
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        ctx.save_for_backward(rows_grad, weight_grad)
        ctx.mark_non_differentiable(nll, correct)
        return total / weights.denominator, nll, correct

    @staticmethod
    def backward(
        ctx: Any, loss_grad: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows_grad, weight_grad = ctx.saved_tensors
        # The outer gradient is a plain 1 unless somebody weights losses.
        unit = loss_grad.device.type == "cpu" and loss_grad.item() == 1.0
        scaled = [
            grad if grad is None or unit else grad * loss_grad.to(grad.dtype)
            for grad in (rows_grad, weight_grad)
        ]
        return scaled[0], scaled[1], None, None


def _score(
    logits: Tensor, label: Tensor, weights: _Weights, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Score one chunk; its logits are overwritten.

    Returns:
        Negative log-likelihoods (n,), hits (n,), the sum of the stabilizers, and where it is wanted
        the gradient of the mean loss by the logits before capping, (n, V).
    """
    config = weights.config
    largest, best = logits.max(dim=-1)
    chosen = logits.gather(1, label[:, None]).squeeze(1)
    bend = None
    if gradient and weights.softcap is not None:
        bend = 1 - (logits / weights.softcap).square_()  # derivative of the capping
    exponent = logits.sub_(largest[:, None]).exp_()
    norm = exponent.sum(dim=-1)
    lse = largest + norm.log()
    nll = lse - chosen
    extra = config.max_z_loss * largest.square().sum() + config.z_loss * lse.square().sum()
    if not gradient:
        return nll, best == label, extra, None
    factor = (1 + 2 * config.z_loss * lse) / (norm * weights.denominator)
    slope = exponent.mul_(factor[:, None])
    ones = torch.full_like(nll, -1 / weights.denominator)
    slope.scatter_add_(1, label[:, None], ones[:, None])
    if config.max_z_loss:
        pull = (2 * config.max_z_loss / weights.denominator) * largest
        slope.scatter_add_(1, best[:, None], pull[:, None])
    if bend is not None:
        slope.mul_(bend)
    return nll, best == label, extra, slope
