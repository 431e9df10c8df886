"""Random numbers that depend on a request's seed, a step and a token, and on nothing else.

Each number is a function of (seed, step, column), computed in integers. It is the same on every
device, in every batch and in any order. The generator is SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014): output n of seed s is
``mix(s + (n + 1) * GAMMA)`` modulo 2**64.
"""

from __future__ import annotations

from torch import Tensor

from liquidmm.errors import ConfigError


def _signed(value: int) -> int:
    """Return the signed 64-bit number with the same bits as an unsigned one."""
    return value - 2**64 if value >= 2**63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
_BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""


def check_seed(seed: int) -> int:
    """Return the seed.

    Raises:
        ConfigError: The seed is not from 0 to 2**63 - 1.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed}.")
    return seed


def splitmix64(seed: Tensor, number: Tensor) -> Tensor:
    """Return output ``number`` (from 0, int64) of the generator with this seed (int64).

    The shapes broadcast. The result has 64 random bits, int64.
    """
    bits = (number + 1).mul_(GAMMA) + seed
    # Shifting a signed number copies its sign bit; the mask removes the copies.
    bits.bitwise_xor_((bits >> 30).bitwise_and_(2**34 - 1)).mul_(_FACTORS[0])
    bits.bitwise_xor_((bits >> 27).bitwise_and_(2**37 - 1)).mul_(_FACTORS[1])
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(2**33 - 1))


def exponential(seeds: Tensor, steps: Tensor, columns: Tensor) -> Tensor:
    """Return standard exponential random numbers.

    The column with the largest ``probability / number`` is then a sample of the distribution: the
    waiting time ``number / probability`` of a column is exponential with its probability as the
    rate.

    Args:
        seeds: Seed of each row, int64, at least 0; its shape broadcasts with that of ``steps``.
        steps: Sampling step of each row in its request, from 0, (..., B), int64.
        columns: Columns to choose from, (V,) for all rows or (..., B, k), int64.

    Returns:
        Numbers above 0, (..., B, V) or (..., B, k), float32, with 32 random bits each.
    """
    bits = splitmix64(splitmix64(seeds, steps)[..., None], columns)
    uniform = (bits >> 32).bitwise_and_(2**32 - 1).float().add_(0.5).mul_(2.0**-32)
    return uniform.clamp_(max=_BELOW_ONE).neg_().log1p_().neg_()
