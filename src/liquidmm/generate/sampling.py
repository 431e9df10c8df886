"""From logits to one drawn id per row.

Contract: guidance comes first (`guide`), then temperature, then top-k, then top-p over what top-k
left, as in the published release; `Sampler.distribution` is what comes of it. An id whose logit is
-inf is never drawn. The rows of a batch may have settings of their own, and what a row draws
depends on its logits, its settings and its own random numbers (`noise`), so neither on its
neighbours nor on its place in the batch. An id's random number is bound to the id, not to its rank,
so a rounding error changes a draw only where two ids come out equal anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liquidmm.config import from_dict
from liquidmm.errors import CheckpointError, ConfigError


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

    def check_vocabulary(self, size: int, what: str) -> None:
        """Refuse a top-k above the number of ids there are to draw from.

        Args:
            size: How many there are.
            what: What they are called, such as "codes of the codebook".

        Raises:
            ConfigError: top_k is larger.
        """
        if self.top_k > size and not self.greedy:
            raise ConfigError(
                f"sampling.top_k: {self.top_k} is above the {size} {what}. "
                f"Give an integer from 0 to {size} (0 is off)."
            )


def reference_sampling(codebook_size: int) -> SamplingConfig:
    """Return the release's settings for a codebook of another size.

    The release draws from the likelier half: 4,096 of 8,192 codes.
    """
    return SamplingConfig(top_k=codebook_size // 2)


def saved_sampling(saved: Mapping[str, Any] | None, codebook_size: int) -> SamplingConfig:
    """Return how a checkpoint's pictures are drawn unless told otherwise.

    Args:
        saved: The settings in its `processor_config.json`; None takes those of the release.
        codebook_size: Codes of its image tokenizer.

    Raises:
        ConfigError: A saved setting is unknown or out of range.
    """
    if saved is None:
        return reference_sampling(codebook_size)
    return from_dict(SamplingConfig, saved, "processor_config.json: sampling")


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not (good and math.isfinite(value)):
        raise ConfigError(f"sampling.{name}: {value} is out of range. Give {expected}.")


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Push the logits away from what the model would draw without the prompt.

    Args:
        conditional: Logits given the prompt, (B, V).
        unconditional: Logits given the unconditional prompt, (B, V).
        scale: Guidance s, at least 0; or one for each row, (B, 1), float32.

    Returns:
        ``unconditional + s * (conditional - unconditional)``, (B, V), float32. Where both are the
        same row, exactly that row.
    """
    base = unconditional.float()
    return base + scale * (conditional.float() - base)


def keep_top_p(probabilities: Tensor, p: float | Tensor) -> Tensor:
    """Keep the leading group of each row that reaches probability p, rescaled to sum to 1.

    It is the smallest one, but for columns as likely as its last: they stay with it, so that equal
    columns are treated equally.

    Args:
        probabilities: Descending, each row sums to 1, (B, k).
        p: Above 0; 1 keeps all; or one for each row, (B, 1).

    Returns:
        Probabilities, (B, k), 0 where dropped; the likeliest is always kept.
    """
    before = probabilities.cumsum(dim=-1) - probabilities
    least = probabilities.masked_fill(before >= p, torch.inf).amin(dim=-1, keepdim=True)
    kept = probabilities.masked_fill(probabilities < least, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


class Sampler:
    """The settings of several rows, as columns of numbers."""

    def __init__(self, configs: Sequence[SamplingConfig], device: torch.device | str) -> None:
        """Line them up; what no row asks for is not computed.

        Args:
            configs: Settings of each row.
            device: Where the logits will be.
        """

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        drawn = [config for config in configs if not config.greedy] or list(configs)
        self.all_greedy = all(config.greedy for config in configs)
        """Whether no row is random."""
        self.temperature = column([config.temperature for config in configs])
        self.greedy = None
        if any(config.greedy for config in configs) and not self.all_greedy:
            self.greedy = column([config.greedy for config in configs])[:, 0]
        # 0 is off: then all columns are kept.
        self.widest = 0 if any(c.top_k == 0 for c in drawn) else max(c.top_k for c in drawn)
        ranks = [config.top_k or 2**31 for config in configs]
        self.top_k = column(ranks) if len({config.top_k for config in drawn}) > 1 else None
        self.top_p = None
        if any(config.top_p < 1 for config in drawn):
            # A row that keeps all of them must not lose its tail to rounding.
            self.top_p = column([c.top_p if c.top_p < 1 else math.inf for c in configs])

    @property
    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        parts = (self.temperature, self.greedy, self.top_k, self.top_p)
        return [part for part in parts if part is not None]

    @property
    def signature(self) -> tuple[object, ...]:
        """What two samplers must have in common to do the same operations."""
        parts = (self.greedy, self.top_k, self.top_p)
        return (self.all_greedy, self.widest, *(part is None for part in parts))

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the distribution that `draw` draws from, of rows that aren't greedy.

        Args:
            logits: Guided scores, (B, V); -inf marks columns that may not be drawn.

        Returns:
            Probabilities, (B, k), float32, each row summing to 1; and the columns they belong to,
            (B, k), or None where they are all columns in order.
        """
        scores = logits.float() / self.temperature
        count = scores.shape[-1]
        k = min(self.widest or count, count)
        if self.top_p is None and self.top_k is None and k == count:
            return scores.softmax(dim=-1), None
        # Ranks matter where rows keep different numbers of columns, or a probability's worth.
        ranked = self.top_p is not None or self.top_k is not None
        scores, columns = torch.topk(scores, k, dim=-1, sorted=ranked)
        if self.top_k is not None:
            beyond = torch.arange(k, device=scores.device) >= self.top_k
            scores = scores.masked_fill(beyond, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        if self.top_p is not None:
            probabilities = keep_top_p(probabilities, self.top_p)
        return probabilities, columns

    def draw(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw one column for each row.

        Args:
            logits: Guided scores, (B, V); -inf marks columns that may not be drawn.
            noise: Standard exponential numbers of all columns, (B, V); None where all are greedy.

        Returns:
            Columns, (B,), int64, and whether they are good, (B,), bool: a row without a column that
            may be drawn, or with NaN, is not.
        """
        best, likeliest = logits.max(dim=-1)
        if self.all_greedy or noise is None:
            return likeliest, best > -torch.inf
        if self.top_p is not None and self.top_k is None and logits.device.type == "cpu":
            value, drawn = self._race(logits, noise, self.top_p)
        else:
            probabilities, columns = self.distribution(logits)
            if columns is not None:
                noise = noise.gather(-1, columns)
            value, place = (probabilities / noise).max(dim=-1)
            drawn = place if columns is None else columns.gather(-1, place[:, None])[:, 0]
        if self.greedy is not None:
            drawn = torch.where(self.greedy, likeliest, drawn)
        return drawn, (best > -torch.inf) & (value > 0)

    def _race(self, logits: Tensor, noise: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from `distribution` without sorting anything; for a host that need not wait.

        The winner of all columns is the winner of those that are kept, if it is one of them. It is
        if what is likelier doesn't reach top-p; if it isn't, nothing less likely is either.
        """
        scores = logits.float() / self.temperature
        if 0 < self.widest < scores.shape[-1]:
            least = scores.topk(self.widest, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
            scores = scores.masked_fill(scores < least, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        race = probabilities / noise
        while True:
            value, drawn = race.max(dim=-1)
            winner = probabilities.gather(-1, drawn[:, None])
            likelier = (probabilities * (probabilities > winner)).sum(dim=-1, keepdim=True)
            lost = likelier >= top_p
            if not bool(lost.any()):
                return value, drawn
            race = race.masked_fill(lost & (probabilities <= winner), 0.0)


def check_good(good: Tensor) -> None:
    """Refuse draws that `Sampler.draw` says aren't good.

    Raises:
        CheckpointError: One of them isn't.
    """
    if not bool(good.all()):
        raise CheckpointError(
            "model: its scores are no numbers (NaN). "
            "Its weights are broken, or their type is too narrow: choose float32."
        )
