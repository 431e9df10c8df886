"""Pure functions that compute scores. Legend: N queries, M gallery entries, F features."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

ARTICLES = frozenset({"a", "an", "the"})
"""Words that ``words`` drops."""

_APOSTROPHES = {ord("'"): None, 0x2019: None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Number of correct answers out of ``n``."""

    right: int
    """Number of correct answers, 0 to ``n``."""
    n: int
    """Number of answers; may be 0."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if not 0 <= self.right <= self.n:
            raise ValueError(f"right: expected 0 to n = {self.n}, got {self.right}.")

    @property
    def percent(self) -> float:
        """Percentage of correct answers; NaN if ``n`` is 0."""
        return 100.0 * self.right / self.n if self.n else math.nan

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Accuracy":
        """Count outcomes."""
        listed = [bool(outcome) for outcome in outcomes]
        return cls(right=sum(listed), n=len(listed))


def wilson(accuracy: Accuracy, z: float = Z_95) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion (1927), valid for small n and near 0 or 1.

    Returns:
        Lower and upper bound in percent, 0 to 100; (0, 100) if n is 0.
    """
    if accuracy.n == 0:
        return 0.0, 100.0
    n, share = accuracy.n, accuracy.right / accuracy.n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if accuracy.right == 0 else center - half
    high = 1.0 if accuracy.right == n else center + half
    return 100.0 * low, 100.0 * high


def nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    """Find the entry of a gallery, (M, F), closest to each query, (N, F), in squared difference.

    Returns:
        Indices, (N,) int64; ties give the lowest index.

    Raises:
        ValueError: The gallery is empty or the widths differ.
    """
    if gallery.shape[0] == 0 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"gallery: expected at least one row of width {queries.shape[1]}, got "
            f"{tuple(gallery.shape)}."
        )
    # Float64 because |a|^2 - 2ab + |b|^2 cancels and ties must stay ties.
    left, right = queries.double(), gallery.double()
    distances = right.square().sum(1)[None] - 2 * left @ right.T
    return distances.argmin(1)


def words(text: str) -> tuple[str, ...]:
    """Split into lowercase words of letters and digits, without articles and "style"."""
    cleaned = "".join(
        letter if letter.isalnum() else " " for letter in text.casefold().translate(_APOSTROPHES)
    )
    return tuple(word for word in cleaned.split() if word not in ARTICLES and word != "style")


def contains(text: Sequence[str], part: Sequence[str]) -> int:
    """Return where ``part`` occurs in ``text`` as consecutive words; -1 if nowhere or empty."""
    width = len(part)
    starts = range(len(text) - width + 1) if width else range(0)
    return next((i for i in starts if tuple(text[i : i + width]) == tuple(part)), -1)


def named(text: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """Find the longest known name in a text, so that "green apple" is not "apple".

    Args:
        text: Free text, for example a caption.
        names: Known keys with their words as ``words`` returns them.

    Returns:
        The key whose words occur in the text as whole, consecutive words; among several, the one
        with the most words, then the earliest. None if there is none.
    """
    spoken = words(text)
    best: tuple[int, int, str] | None = None
    present = set(spoken)
    for key, parts in names.items():
        if not present.issuperset(parts):
            continue
        position = contains(spoken, parts)
        if position >= 0 and (best is None or (-len(parts), position, key) < best):
            best = (-len(parts), position, key)
    return best[2] if best else None


def perplexity(nats: float, tokens: int) -> float:
    """Compute the perplexity per token from the sum of the negative log-likelihoods in nats.

    Raises:
        ValueError: ``tokens`` is less than 1.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected at least one, got {tokens}.")
    return math.exp(nats / tokens)


def bits_per_byte(nats: float, size: int) -> float:
    """Compute bits per byte of a text of ``size`` UTF-8 bytes, comparable across tokenizers.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"size: expected at least one byte, got {size}.")
    return nats / (math.log(2) * size)


def codebook_use(codes: Tensor, size: int) -> tuple[float, float]:
    """Compute what fraction of a codebook of ``size`` entries is used, and how evenly.

    Returns:
        Percentage of the entries that are used, and the perplexity of their frequencies (1 to
        ``size``).

    Raises:
        ValueError: There is no code, or one is outside the codebook.
    """
    flat = codes.reshape(-1)
    if flat.numel() == 0 or int(flat.min()) < 0 or int(flat.max()) >= size:
        raise ValueError(
            f"codes: expected at least one, all from 0 to {size - 1}, got {flat.numel()} codes."
        )
    counts = torch.bincount(flat, minlength=size).double()
    shares = counts[counts > 0] / counts.sum()
    return 100.0 * len(shares) / size, math.exp(float(-(shares * shares.log()).sum()))
