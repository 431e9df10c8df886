from collections import Counter

import numpy as np
import pytest

from liquidmm.data.shuffle import round_keys, shuffled


def order(length, *seed):
    return [shuffled(index, length, round_keys(seed)) for index in range(length)]


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 99, 100, 101, 1000, 4096, 7919])
def test_shuffled_is_a_bijection(length):
    assert sorted(order(length, 0, 1)) == list(range(length))


def test_shuffled_stays_in_range_for_huge_lengths():
    keys = round_keys((3,))
    for length in (10**9 + 7, 2**62):
        found = {shuffled(index, length, keys) for index in range(length - 500, length)}
        assert len(found) == 500
        assert min(found) >= 0
        assert max(found) < length


def test_shuffled_is_written_out():
    """The order is part of the format of training checkpoints: it must never change."""
    assert order(10, 0, 1, 2) == [0, 6, 7, 5, 9, 2, 3, 8, 1, 4]
    assert shuffled(123_456, 10**7, round_keys((5,))) == 6_913_576


def test_shuffled_orders_of_other_seeds_and_epochs_are_unrelated():
    orders = [order(5000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    correlation = np.corrcoef([*orders, range(5000)])[np.triu_indices(5, 1)]
    assert np.abs(correlation).max() < 0.06
    assert all(sum(a == b for a, b in zip(orders[0], each, strict=True)) < 9 for each in orders[1:])


def test_shuffled_reaches_all_orders_of_four_alike():
    counts = Counter(tuple(order(4, seed)) for seed in range(2400))
    assert len(counts) == 24
    expected = 2400 / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 2.5 * 23


def test_shuffled_puts_every_element_everywhere_alike():
    length, seeds = 30, 3000
    counts = np.zeros((length, length))
    neighbors = np.zeros((length, length))
    for seed in range(seeds):
        elements = order(length, 7, seed)
        counts[range(length), elements] += 1
        neighbors[elements[:-1], elements[1:]] += 1
    expected = seeds / length
    assert ((counts - expected) ** 2 / expected).mean() < 1.2
    pairs = neighbors[~np.eye(length, dtype=bool)]  # 29 pairs per order, 30 * 29 possible ones
    assert ((pairs - expected) ** 2 / expected).mean() < 1.5
