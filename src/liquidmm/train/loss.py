"""Next-token loss over a large vocabulary, computed from hidden states.

The full logits of a batch are never in memory: only positions with a target are computed, one chunk
at a time, and each chunk's gradient is computed while its logits exist. Nothing is recomputed.
Max-z is the stabilizer of Baichuan 2 (Yang et al. 2023, section 2.6) as used in Liquid: a weight
times the square of the largest logit, averaged over the positions with a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, cast

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.ranges import RangeChecked


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(RangeChecked):
    """Loss terms besides cross-entropy, and the chunk size."""

    max_z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared largest logit; 0 disables it."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared log-sum-exp; 0 disables it."""
    chunk_logits: Annotated[int, Ge(0)] = 0
    """Number of float32 logits in a chunk. 0 chooses 16 MiB on a CPU, which fits in its cache, and
    512 MiB on a GPU, but at least 128 positions because each chunk reads the whole head."""

    def positions(self, vocab_size: int, device: torch.device) -> int:
        """Return the number of positions in a chunk."""
        if self.chunk_logits:
            return max(1, self.chunk_logits // vocab_size)
        wanted = 1 << (27 if device.type == "cuda" else 22)
        return max(128, wanted // vocab_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Output layer of a language model."""

    weight: Tensor
    """(V, D)."""
    scale: float = 1.0
    """Multiplies the logits (Cohere, Granite)."""
    softcap: float | None = None
    """Bound c of ``c tanh(logit / c)`` (Gemma 2); None for unbounded logits."""


class LossResult(NamedTuple):
    """Loss and counts of one batch; a tuple because FSDP must find the loss in it."""

    loss: Tensor
    """The value to differentiate, scalar, float32 or float64."""
    nll: Tensor
    """Sum of the negative log-likelihoods of each task in nats, (tasks,), detached."""
    correct: Tensor
    """Number of positions of each task whose largest logit is the target, (tasks,), detached."""
    counts: Tensor
    """Number of positions of each task with a target, (tasks,), detached."""


def next_token_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    task_ids: Tensor,
    config: LossConfig,
    *,
    tasks: int,
    num_targets: int | None = None,
) -> LossResult:
    """Compute the loss of hidden states under a head.

    Under autocast, the matrix products use its dtype, and everything after them uses float32 (or
    float64 for float64 inputs).

    Args:
        hidden: Last hidden states, (B, T, D).
        head: The output layer.
        targets: Shifted labels, (B, T).
        task_ids: Task of every position, (B, T), from 0 to ``tasks`` - 1 where there is a target.
        config: Stabilizers and chunk size.
        tasks: Number of tasks.
        num_targets: Number of targets to average over if this batch is only part of a step; None
            uses the number in this batch. Without any target, the loss is 0.
    """
    places = (targets != IGNORE_INDEX).flatten().nonzero().squeeze(1)  # (N,)
    target = targets.flatten()[places]
    task = task_ids.flatten()[places].long()
    states = hidden.flatten(0, 1)[places]  # (N, D)
    if head.scale != 1.0:
        states = states * head.scale
    if torch.is_autocast_enabled(hidden.device.type):
        states = states.to(torch.get_autocast_dtype(hidden.device.type))
    options = _Options(
        denominator=max(1, len(target) if num_targets is None else num_targets),
        softcap=head.softcap,
        config=config,
        with_gradient=torch.is_grad_enabled(),
    )
    loss, nll, correct = cast("Any", _HeadLoss).apply(states, head.weight, target, options)

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
class _Options:
    denominator: int
    softcap: float | None
    config: LossConfig
    with_gradient: bool


class _HeadLoss(torch.autograd.Function):
    """Head and loss combined; the forward pass computes the gradient chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, target: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(states.dtype, torch.float32)
        wants_states = options.with_gradient and ctx.needs_input_grad[0]
        wants_weight = options.with_gradient and ctx.needs_input_grad[1]
        nll = torch.zeros(len(states), dtype=exact, device=states.device)
        correct = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        total = torch.zeros((), dtype=exact, device=states.device)
        states_grad = torch.empty_like(states) if wants_states else None
        # In bfloat16, sums of many chunks would lose small terms.
        weight_grad = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        with torch.autocast(states.device.type, enabled=False):
            table = weight.to(states.dtype)
            size = options.config.positions(len(table), states.device)
            for start in range(0, len(states), size):
                part = slice(start, start + size)
                logits = functional.linear(states[part], table).to(exact)  # (n, V)
                if options.softcap is not None:
                    logits.div_(options.softcap).tanh_().mul_(options.softcap)
                nll[part], correct[part], extra, grad = _score(
                    logits, target[part], options, wants_states or wants_weight
                )
                total += nll[part].sum() + extra
                if grad is None:
                    continue
                grad = grad.to(states.dtype)
                if states_grad is not None:
                    states_grad[part] = grad @ table
                if weight_grad is not None and weight_grad.dtype == states.dtype:
                    weight_grad.addmm_(grad.T, states[part])
                elif weight_grad is not None:
                    weight_grad += grad.T @ states[part]
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        ctx.save_for_backward(states_grad, weight_grad)
        ctx.mark_non_differentiable(nll, correct)
        return total / options.denominator, nll, correct

    @staticmethod
    def backward(
        ctx: Any, loss_grad: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        # The incoming gradient is 1 unless the caller scales the loss.
        unit = loss_grad.device.type == "cpu" and loss_grad.item() == 1.0
        states_grad, weight_grad = (
            grad if grad is None or unit else grad * loss_grad.to(grad.dtype)
            for grad in ctx.saved_tensors
        )
        return states_grad, weight_grad, None, None


def _score(
    logits: Tensor, target: Tensor, options: _Options, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Score one chunk; its logits are overwritten.

    Returns:
        Negative log-likelihoods (n,), whether the largest logit is the target (n,), the sum of the
        stabilizers, and the gradient of the mean loss with respect to the logits before capping (n,
        V), if requested.
    """
    config = options.config
    largest, best = logits.max(dim=-1)
    chosen = logits.gather(1, target[:, None]).squeeze(1)
    capping = None
    if with_gradient and options.softcap is not None:
        capping = 1 - (logits / options.softcap).square_()  # derivative of the capping
    exponent = logits.sub_(largest[:, None]).exp_()
    norm = exponent.sum(dim=-1)
    lse = largest + norm.log()
    nll = lse - chosen
    extra = config.max_z_loss * largest.square().sum() + config.z_loss * lse.square().sum()
    if not with_gradient:
        return nll, best == target, extra, None
    factor = (1 + 2 * config.z_loss * lse) / (norm * options.denominator)
    grad = exponent.mul_(factor[:, None])
    ones = torch.full_like(nll, -1 / options.denominator)
    grad.scatter_add_(1, target[:, None], ones[:, None])
    if config.max_z_loss:
        pull = (2 * config.max_z_loss / options.denominator) * largest
        grad.scatter_add_(1, best[:, None], pull[:, None])
    if capping is not None:
        grad.mul_(capping)
    return nll, best == target, extra, grad
