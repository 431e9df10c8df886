"""A shuffled order of any length, computed one index at a time without storing it.

The permutation is a generalized Feistel cipher (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). With a = ceil(sqrt(n)) and b = ceil(n / a), an index is a pair (i, j) with i < a
and j < b. Each round adds a keyed hash of one half to the other half, modulo its size. This is
invertible, so every round, and the whole cipher, is a bijection of the a * b pairs. Pairs outside
the n indices are permuted again until the result is inside ("cycle walking"); fewer than a pairs
are outside, so this is rare.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np

_ROUNDS = 8
_MASK = 2**64 - 1


@lru_cache(maxsize=64)
def round_keys(seed: tuple[int, ...]) -> tuple[int, ...]:
    """Return the keys for `shuffled` from a seed of any number of non-negative integers."""
    return tuple(np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64).tolist())


def shuffled(index: int, length: int, keys: Sequence[int]) -> int:
    """Return the element at an index of a shuffled `range(length)`.

    Args:
        index: Position in the shuffled order, from 0 to `length` - 1.
        length: Number of elements, 1 or more.
        keys: The permutation, from `round_keys`.
    """
    a = isqrt(length - 1) + 1
    b = -(-length // a)
    while True:
        left, right = divmod(index, b)
        for step, key in enumerate(keys):
            if step % 2:
                right = (right + _hash(left + key)) % b
            else:
                left = (left + _hash(right + key)) % a
        index = left * b + right
        if index < length:
            return index


def _hash(value: int) -> int:
    """Mix the bits of a 64-bit integer with the finalizer of splitmix64 (Steele et al., 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
