"""Scores against values worked out by hand."""

import math

import pytest
import torch

from liquidmm.evaluate.metrics import (
    Tally,
    bits_per_byte,
    codebook_use,
    contains,
    named,
    nearest,
    perplexity,
    wilson,
    words,
)


def test_tally_counts_and_gives_percent() -> None:
    tally = Tally.of([True, False, True, True])
    assert tally == Tally(right=3, n=4)
    assert tally.percent == 75.0
    assert math.isnan(Tally(right=0, n=0).percent)


def test_tally_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 right of 2"):
        Tally(right=3, n=2)


def test_wilson_by_hand() -> None:
    # With z = 2, 2 of 4: centre (.5 + 4/8) / 2 = .5; half 2 sqrt(.25/4 + 4/64) / 2 = sqrt(1/8).
    low, high = wilson(Tally(right=2, n=4), z=2.0)
    assert low == pytest.approx(100 * (0.5 - math.sqrt(1 / 8)))
    assert high == pytest.approx(100 * (0.5 + math.sqrt(1 / 8)))


def test_wilson_published_value() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(Tally(right=81, n=263))
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)


def test_wilson_at_the_ends() -> None:
    assert wilson(Tally(right=0, n=10))[0] == 0.0
    assert wilson(Tally(right=0, n=10))[1] == pytest.approx(27.75, abs=0.01)
    assert wilson(Tally(right=10, n=10))[1] == 100.0
    assert wilson(Tally(right=0, n=0)) == (0.0, 100.0)


def test_nearest_takes_the_smallest_distance_and_the_first_of_equals() -> None:
    gallery = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]])
    queries = torch.tensor([[2.9, 4.0], [-0.4, 0.0], [-0.6, 0.0]])
    assert nearest(queries, gallery).tolist() == [1, 0, 3]


def test_nearest_refuses_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        nearest(torch.zeros(1, 2), torch.zeros(0, 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red apple, Noto style.", ("red", "apple", "noto")),
        ("the person's T-Rex", ("persons", "t", "rex")),
        ("person\u2019s hat", ("persons", "hat")),
        ("", ()),
    ],
)
def test_words(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_contains_wants_whole_consecutive_words() -> None:
    assert contains(("red", "apple", "pie"), ("apple", "pie")) == 1
    assert contains(("red", "apple", "pie"), ("red", "pie")) == -1
    assert contains(("apple",), ()) == -1


NAMES = {"apple": ("apple",), "green-apple": ("green", "apple"), "tree": ("tree",)}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a green apple, noto style", "green-apple"),
        ("an apple that is green", "apple"),
        ("A TREE with an apple", "tree"),
        ("apples and trees", None),
        ("", None),
    ],
)
def test_named_takes_the_longest_then_the_first(caption: str, expected: str | None) -> None:
    assert named(caption, NAMES) == expected


def test_perplexity_and_bits_per_byte() -> None:
    # Four tokens of probability 1/8 each, over six bytes: 12 bits.
    nats = 4 * math.log(8)
    assert perplexity(nats, 4) == pytest.approx(8.0)
    assert bits_per_byte(nats, 6) == pytest.approx(2.0)


@pytest.mark.parametrize("score", [perplexity, bits_per_byte])
def test_nothing_to_divide_by(score: object) -> None:
    with pytest.raises(ValueError, match="at least one|not empty"):
        score(1.0, 0)  # type: ignore[operator]


def test_codebook_use() -> None:
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits, perplexity 2 ** 1.5.
    share, spread = codebook_use(torch.tensor([[0, 0], [2, 5]]), 8)
    assert share == 37.5
    assert spread == pytest.approx(2**1.5)


def test_codebook_use_refuses_codes_outside() -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        codebook_use(torch.tensor([8]), 8)
