"""From logits to one drawn id per row, as small pure functions.

Contract: the final distribution is `distribution(logits, config)`: guidance comes before it
(`guide`), then temperature, then top-k, then top-p over what top-k left, as in the published
release. An id whose logit is -inf is never drawn. Every row is drawn with a generator of its own
and one uniform number, so what a row draws depends neither on its neighbours nor on its place in
the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from liquidmm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next id is chosen; the defaults are those of the published release for pictures."""

    guidance: float = 7.0
    """Scale s of classifier-free guidance, at least 0; 1 is plain sampling, 0 ignores the prompt.
    Text is never guided."""
    temperature: float = 0.99
    """Divides the logits, above 0; below 1 is bolder, above 1 is wilder."""
    top_k: int = 4096
    """Only the k likeliest ids may be drawn; 0 is off."""
    top_p: float = 0.96
    """Only the likeliest ids that together reach this probability may be drawn, above 0 and at most
    1; 1 is off."""
    greedy: bool = False
    """Always take the likeliest id; temperature, top_k and top_p then have no effect."""

    def __post_init__(self) -> None:
        _check("guidance", self.guidance, self.guidance >= 0, "a number of at least 0")
        _check("temperature", self.temperature, self.temperature > 0, "a number above 0")
        _check("top_k", self.top_k, self.top_k >= 0, "an integer of at least 0 (0 is off)")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)")


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not (good and math.isfinite(value)):
        raise ConfigError(f"sampling.{name}: {value} is out of range. Give {expected}.")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Push the logits away from what the model would draw without the prompt.

    Args:
        conditional: Logits given the prompt, (B, V).
        unconditional: Logits given the unconditional prompt, (B, V).
        scale: Guidance s, at least 0.

    Returns:
        ``unconditional + s * (conditional - unconditional)``, (B, V); float32; exactly
        ``conditional`` for 1.
    """
    if scale == 1:
        return conditional
    base = unconditional.float()
    return base + scale * (conditional.float() - base)


def forbid(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Return a copy of ``logits`` (B, V) in which the columns ``ids`` can't be drawn."""
    blocked = logits.clone()
    blocked[:, list(ids)] = -torch.inf
    return blocked


def keep_top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k likeliest columns of each row, in descending order.

    Args:
        logits: Scores, (B, V).
        k: How many; 0 or at least V keeps all of them.

    Returns:
        Scores, (B, min(k, V)), and their columns, (B, min(k, V)), int64.
    """
    count = logits.shape[-1]
    values, columns = torch.topk(logits, min(k, count) if k else count, dim=-1, sorted=True)
    return values, columns


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Keep the smallest leading group of each row that reaches probability p, rescaled to sum to 1.

    Args:
        probabilities: Descending, each row sums to 1, (B, k).
        p: Above 0; 1 keeps all.

    Returns:
        Probabilities, (B, k), 0 where dropped; the likeliest is always kept.
    """
    if p >= 1:
        return probabilities
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= p, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def distribution(logits: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Give the distribution that `draw` draws from.

    Args:
        logits: Guided scores, (B, V); -inf marks columns that may not be drawn.
        config: Temperature, top-k and top-p; greedy puts everything on the likeliest column.

    Returns:
        Probabilities, (B, k), float32, each row summing to 1, and the columns they belong to, (B,
        k).

    Raises:
        ValueError: A row has no column that may be drawn, or holds NaN.
    """
    if not bool((logits.amax(dim=-1) > -torch.inf).all()):
        raise ValueError("logits: a row has no id that may be drawn.")
    if config.greedy:
        columns = logits.argmax(dim=-1, keepdim=True)
        return torch.ones_like(columns, dtype=torch.float32), columns
    scores = logits.float() / config.temperature
    if config.top_k == 0 and config.top_p == 1:
        # Nothing to cut, so nothing to sort.
        columns = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        return scores.softmax(dim=-1), columns
    scores, columns = keep_top_k(scores, config.top_k)
    return keep_top_p(scores.softmax(dim=-1), config.top_p), columns


def draw(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one column for each row.

    Args:
        logits: Guided scores, (B, V); -inf marks columns that may not be drawn.
        config: Temperature, top-k and top-p, or greedy.
        generators: One random state per row, on the CPU, so that every device draws alike; greedy
            uses none.

    Returns:
        Columns, (B,), int64.

    Raises:
        ValueError: A row has no column that may be drawn.
    """
    probabilities, columns = distribution(logits, config)
    if config.greedy:
        return columns[:, 0]
    uniform = torch.stack([torch.rand(1, generator=generator) for generator in generators])
    total = probabilities.cumsum(dim=-1)
    threshold = uniform.to(total.device) * total[:, -1:]
    place = torch.searchsorted(total, threshold, right=True).clamp_(max=total.shape[-1] - 1)
    # Sums on an accelerator may round so that an impossible column is hit; never give that one.
    possible = probabilities.gather(1, place) > 0
    place = torch.where(possible, place, probabilities.argmax(dim=-1, keepdim=True))
    return columns.gather(1, place)[:, 0]
