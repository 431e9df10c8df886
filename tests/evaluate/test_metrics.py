"""Scores compared with values computed manually."""

import math

import pytest
import torch

from liquidmm.evaluate.metrics import (
    Accuracy,
    bits_per_byte,
    codebook_use,
    contains,
    named,
    nearest,
    perplexity,
    wilson,
    words,
)


def test_accuracy_counts_and_gives_percent() -> None:
    accuracy = Accuracy.of([True, False, True, True])
    assert accuracy == Accuracy(right=3, n=4)
    assert accuracy.percent == 75.0
    assert math.isnan(Accuracy(right=0, n=0).percent)


def test_accuracy_impossible_counts_rejected() -> None:
    with pytest.raises(ValueError, match="right.*2.*3"):
        Accuracy(right=3, n=2)


def test_wilson_computed_manually() -> None:
    # With z = 2, 2 of 4: center (.5 + 4/8) / 2 = .5; half 2 sqrt(.25/4 + 4/64) / 2 = sqrt(1/8).
    low, high = wilson(Accuracy(right=2, n=4), z=2.0)
    assert low == pytest.approx(100 * (0.5 - math.sqrt(1 / 8)))
    assert high == pytest.approx(100 * (0.5 + math.sqrt(1 / 8)))


def test_wilson_published_value() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(Accuracy(right=81, n=263))
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)


def test_wilson_at_zero_and_one() -> None:
    assert wilson(Accuracy(right=0, n=10))[0] == 0.0
    assert wilson(Accuracy(right=0, n=10))[1] == pytest.approx(27.75, abs=0.01)
    assert wilson(Accuracy(right=10, n=10))[1] == 100.0
    assert wilson(Accuracy(right=0, n=0)) == (0.0, 100.0)


def test_nearest_smallest_distance_then_first() -> None:
    gallery = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]])
    queries = torch.tensor([[2.9, 4.0], [-0.4, 0.0], [-0.6, 0.0]])
    assert nearest(queries, gallery).tolist() == [1, 0, 3]


def test_nearest_in_empty_gallery_rejected() -> None:
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
def test_words_without_articles_and_punctuation(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_contains_only_whole_consecutive_words() -> None:
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
def test_named_longest_then_first(caption: str, expected: str | None) -> None:
    assert named(caption, NAMES) == expected


def test_perplexity_and_bits_per_byte() -> None:
    # Four tokens of probability 1/8 each, over six bytes: 12 bits.
    nats = 4 * math.log(8)
    assert perplexity(nats, 4) == pytest.approx(8.0)
    assert bits_per_byte(nats, 6) == pytest.approx(2.0)


@pytest.mark.parametrize("score", [perplexity, bits_per_byte])
def test_scores_of_nothing_rejected(score: object) -> None:
    with pytest.raises(ValueError, match="at least one.*0"):
        score(1.0, 0)  # type: ignore[operator]


def test_codebook_use_share_and_perplexity() -> None:
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits, perplexity 2 ** 1.5.
    share, spread = codebook_use(torch.tensor([[0, 0], [2, 5]]), 8)
    assert share == 37.5
    assert spread == pytest.approx(2**1.5)


def test_codebook_use_outside_codes_rejected() -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        codebook_use(torch.tensor([8]), 8)
