"""Sampling: from logits to one token per sequence.

Guidance is applied first (`guide`), then temperature, top-k and top-p, as in the reference
implementation. A token with logit -inf is never sampled. The result for a row depends on its
logits, its settings and its own random numbers (`rng`), not on the other rows. Each random number
belongs to a token, not to a rank, so a rounding error changes the result only if two tokens tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from liquidmm.config import from_dict
from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.ranges import RangeChecked


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(RangeChecked):
    """How to choose the next token; the defaults are those of the reference implementation."""

    guidance: Annotated[float, Ge(0)] = 7.0
    """Scale s of classifier-free guidance for images; 1 is plain sampling, 0 ignores the prompt."""
    temperature: Annotated[float, Gt(0)] = 0.99
    """Divides the logits; lower is more predictable, higher is more varied."""
    top_k: Annotated[int, Ge(0)] = 4096
    """Sample only from the k most likely tokens; 0 is off."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.96
    """Sample only from the most likely tokens with this total probability; 1 is off."""
    greedy: bool = False
    """Always choose the most likely token; temperature, top_k and top_p then have no effect."""

    def check_vocabulary(self, size: int, what: str) -> None:
        """Check top_k against the number of tokens to choose from, which ``what`` names.

        Raises:
            ConfigError: top_k is larger than ``size``.
        """
        if self.top_k > size and not self.greedy:
            raise ConfigError(
                f"top_k: expected an integer from 0 (off) to {size}, the number of {what}, "
                f"got {self.top_k}."
            )


GREEDY_SAMPLING = SamplingConfig(greedy=True)
"""Default for captions."""

DEFAULT_CHAT_SAMPLING = SamplingConfig(temperature=0.7, top_k=50, top_p=0.9)
"""Default for text and chat."""


def reference_sampling(codebook_size: int) -> SamplingConfig:
    """Return the settings of the reference implementation for a codebook of this size.

    The reference samples from the more likely half: 4,096 of 8,192 codes.
    """
    return SamplingConfig(top_k=codebook_size // 2)


def saved_sampling(saved: Mapping[str, Any] | None, codebook_size: int) -> SamplingConfig:
    """Return a checkpoint's defaults for images.

    Args:
        saved: The settings in its `processor_config.json`; None uses those of the reference.
        codebook_size: Number of codes of its image tokenizer.

    Raises:
        ConfigError: A saved setting is unknown or out of range.
    """
    if saved is None:
        return reference_sampling(codebook_size)
    return from_dict(SamplingConfig, saved, "processor_config.json: sampling")


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Apply classifier-free guidance.

    Args:
        conditional: Logits given the prompt, (B, V).
        unconditional: Logits given the unconditional prompt, (B, V).
        scale: Guidance s, at least 0, or one value per row, (B, 1), float32.

    Returns:
        ``unconditional + s * (conditional - unconditional)``, (B, V), float32. A row where both are
        equal is returned exactly.
    """
    base = unconditional.float()
    return base + scale * (conditional.float() - base)


def keep_top_p(probabilities: Tensor, p: float | Tensor) -> Tensor:
    """Keep the first columns of each row that reach p, rescaled to sum to 1.

    Columns as likely as the last one kept are kept too.

    Args:
        probabilities: In descending order, each row sums to 1, (B, k).
        p: Above 0, or one value per row, (B, 1); 1 keeps all columns.

    Returns:
        Probabilities, (B, k), 0 where dropped; the most likely column is always kept.
    """
    before = probabilities.cumsum(dim=-1) - probabilities
    least = probabilities.masked_fill(before >= p, torch.inf).amin(dim=-1, keepdim=True)
    kept = probabilities.masked_fill(probabilities < least, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


class Sampler:
    """The settings of several rows as tensors; filters that no row uses are skipped."""

    def __init__(self, configs: Sequence[SamplingConfig], device: torch.device | str) -> None:
        sampled = [config for config in configs if not config.greedy] or list(configs)
        self.all_greedy = all(config.greedy for config in configs)
        """Whether all rows are greedy."""
        self.temperature = _column([config.temperature for config in configs], device)
        self.greedy = None
        if any(config.greedy for config in configs) and not self.all_greedy:
            self.greedy = _column([config.greedy for config in configs], device)[:, 0]
        # 0 is off: all columns are kept.
        widths = {config.top_k for config in sampled}
        self.widest = 0 if 0 in widths else max(widths)
        self.top_k = None
        if len(widths) > 1:
            self.top_k = _column([config.top_k or 2**31 for config in configs], device)
        self.top_p = None
        if any(config.top_p < 1 for config in sampled):
            # A row that keeps all columns must not lose its tail to rounding.
            limits = [config.top_p if config.top_p < 1 else math.inf for config in configs]
            self.top_p = _column(limits, device)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the sampler."""
        parts = (self.temperature, self.greedy, self.top_k, self.top_p)
        return [part for part in parts if part is not None]

    @property
    def signature(self) -> tuple[object, ...]:
        """A key that is equal for two samplers with the same operations."""
        parts = (self.greedy, self.top_k, self.top_p)
        return (self.all_greedy, self.widest, *(part is None for part in parts))

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the distribution that `sample` uses for rows that are not greedy.

        Returns:
            Probabilities, (B, k), float32, each row summing to 1; and the columns they belong to,
            (B, k), or None if they are all columns in order.
        """
        scores = logits.float() / self.temperature
        count = scores.shape[-1]
        k = min(self.widest or count, count)
        if self.top_p is None and self.top_k is None and k == count:
            return scores.softmax(dim=-1), None
        # The order matters only if rows keep different numbers of columns, or use top-p.
        ranked = self.top_p is not None or self.top_k is not None
        scores, columns = torch.topk(scores, k, dim=-1, sorted=ranked)
        if self.top_k is not None:
            beyond = torch.arange(k, device=scores.device) >= self.top_k
            scores = scores.masked_fill(beyond, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        if self.top_p is not None:
            probabilities = keep_top_p(probabilities, self.top_p)
        return probabilities, columns

    def sample(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Choose one column for each row.

        Args:
            logits: Guided logits, (B, V); -inf excludes a column.
            noise: Standard exponential numbers of all columns, (B, V); None if all are greedy.

        Returns:
            Columns, (B,), int64, and whether they are valid, (B,), bool: a row with NaN or without
            a possible column is invalid.
        """
        best, likeliest = logits.max(dim=-1)
        if self.all_greedy or noise is None:
            return likeliest, best > -torch.inf
        if self.top_p is not None and self.top_k is None and logits.device.type == "cpu":
            value, chosen = self._race(logits, noise, self.top_p)
        else:
            probabilities, columns = self.distribution(logits)
            if columns is not None:
                noise = noise.gather(-1, columns)
            value, place = (probabilities / noise).max(dim=-1)
            chosen = place if columns is None else columns.gather(-1, place[:, None])[:, 0]
        if self.greedy is not None:
            chosen = torch.where(self.greedy, likeliest, chosen)
        return chosen, (best > -torch.inf) & (value > 0)

    def _race(self, logits: Tensor, noise: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Sample from `distribution` without sorting, which is faster on a CPU.

        If top-p keeps the winner among all columns, it also wins among the columns that top-p
        keeps. Top-p keeps it if the more likely columns do not reach p; otherwise the winner and
        all less likely columns are removed.
        """
        scores = logits.float() / self.temperature
        if 0 < self.widest < scores.shape[-1]:
            least = scores.topk(self.widest, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
            scores = scores.masked_fill(scores < least, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        race = probabilities / noise
        while True:
            value, chosen = race.max(dim=-1)
            winner = probabilities.gather(-1, chosen[:, None])
            likelier = (probabilities * (probabilities > winner)).sum(dim=-1, keepdim=True)
            lost = likelier >= top_p
            if not bool(lost.any()):
                return value, chosen
            race = race.masked_fill(lost & (probabilities <= winner), 0.0)


def check_valid(valid: Tensor) -> None:
    """Check the validity that `Sampler.sample` returned.

    Raises:
        CheckpointError: A row is not valid.
    """
    if not bool(valid.all()):
        raise CheckpointError(
            "model: logits contain NaN. The weights may be corrupt, or the dtype too narrow; "
            "try float32."
        )


def _column(values: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(values, device=device)[:, None]
