"""Pure scores: numbers in, numbers out, no model, no file, no random state.

Everything here is exact and small enough to be checked by hand; the tasks of this package decide
what is counted, this file decides how. Legend: N queries, M gallery entries, F features.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the standard normal distribution."""

ARTICLES = frozenset({"a", "an", "the"})
"""Words that ``words`` drops."""

_APOSTROPHES = {ord("'"): None, 0x2019: None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """How many of ``n`` tries were right."""

    right: int
    """Number of right tries, 0 to ``n``."""
    n: int
    """Number of tries; 0 means that there were none."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be.

        Raises:
            ValueError: ``right`` is negative or larger than ``n``.
        """
        if not 0 <= self.right <= self.n:
            raise ValueError(f"Tally: {self.right} right of {self.n}. Count 0 <= right <= n.")

    @property
    def percent(self) -> float:
        """Share of right tries in percent; nan without a try."""
        return 100.0 * self.right / self.n if self.n else math.nan

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Tally":
        """Count a run of outcomes."""
        listed = [bool(outcome) for outcome in outcomes]
        return cls(right=sum(listed), n=len(listed))


def wilson(tally: Tally, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a share (Wilson, 1927): honest for few tries and near 0 or 1.

    Args:
        tally: Right tries and all tries.
        z: Two-sided point of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper end in percent, 0 to 100; (0, 100) without a try.
    """
    if tally.n == 0:
        return 0.0, 100.0
    n, share = tally.n, tally.right / tally.n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if tally.right == 0 else centre - half
    high = 1.0 if tally.right == n else centre + half
    return 100.0 * low, 100.0 * high


def nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    """Index of the gallery entry with the smallest mean squared difference.

    Args:
        queries: (N, F), any float type.
        gallery: (M, F), M >= 1.

    Returns:
        (N,) int64; among equal distances the lowest index.

    Raises:
        ValueError: The gallery is empty or the widths differ.
    """
    if gallery.shape[0] == 0 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"nearest: queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)}. "
            "Give both the same width and the gallery at least one row."
        )
    # Float64, because |a|^2 - 2ab + |b|^2 cancels and ties must stay ties.
    left, right = queries.double(), gallery.double()
    distances = right.square().sum(1)[None] - 2 * left @ right.T
    return distances.argmin(1)


def words(text: str) -> tuple[str, ...]:
    """Lower-case words, letters and digits only, without articles and the word "style"."""
    cleaned = "".join(
        letter if letter.isalnum() else " " for letter in text.casefold().translate(_APOSTROPHES)
    )
    return tuple(word for word in cleaned.split() if word not in ARTICLES and word != "style")


def contains(text: Sequence[str], part: Sequence[str]) -> int:
    """Where ``part`` stands in ``text`` as consecutive words, or -1; an empty part never does."""
    width = len(part)
    starts = range(len(text) - width + 1) if width else range(0)
    return next((i for i in starts if tuple(text[i : i + width]) == tuple(part)), -1)


def named(text: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """The name that a text gives: the longest known one, so "green apple" is not "apple".

    Args:
        text: Free text, for example a caption.
        names: Known keys with their words as ``words`` returns them.

    Returns:
        The key whose words stand in the text as whole, consecutive words; of several the one with
        the most words, then the earliest. None if there is none.
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
    """Perplexity per token.

    Args:
        nats: Sum of the negative log-likelihoods, natural logarithm, >= 0.
        tokens: Number of predicted tokens, >= 1.

    Returns:
        ``exp(nats / tokens)``.

    Raises:
        ValueError: There is no token.
    """
    if tokens < 1:
        raise ValueError(f"perplexity: {tokens} tokens. Give at least one predicted token.")
    return math.exp(nats / tokens)


def bits_per_byte(nats: float, size: int) -> float:
    """Cross-entropy in bits per byte of UTF-8 text, comparable across tokenizers.

    Args:
        nats: Sum of the negative log-likelihoods over the text, natural logarithm.
        size: Bytes of the same text in UTF-8, >= 1.

    Returns:
        ``nats / (ln 2 * size)``.

    Raises:
        ValueError: There is no byte.
    """
    if size < 1:
        raise ValueError(f"bits_per_byte: {size} bytes. Give text that is not empty.")
    return nats / (math.log(2) * size)


def codebook_use(codes: Tensor, size: int) -> tuple[float, float]:
    """How much of a codebook is used, and how evenly.

    Args:
        codes: Codebook indices of any shape, int64, 0 <= code < size, at least one.
        size: Entries of the codebook.

    Returns:
        Share of the entries that occur, in percent, and the perplexity of their frequencies (1 to
        ``size``).

    Raises:
        ValueError: There is no code, or one outside the codebook.
    """
    flat = codes.reshape(-1)
    if flat.numel() == 0 or int(flat.min()) < 0 or int(flat.max()) >= size:
        raise ValueError(
            f"codebook_use: {flat.numel()} codes. Give at least one, all in 0 to {size - 1}."
        )
    counts = torch.bincount(flat, minlength=size).double()
    shares = counts[counts > 0] / counts.sum()
    return 100.0 * len(shares) / size, math.exp(float(-(shares * shares.log()).sum()))
