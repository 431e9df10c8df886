from __future__ import annotations

import math

import pytest
import torch

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.generate.rng import exponential
from liquidmm.generate.sampling import (
    Sampler,
    SamplingConfig,
    check_valid,
    guide,
    reference_sampling,
)

PLAIN = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def spread(logits: torch.Tensor, *configs: SamplingConfig) -> list[list[float]]:
    """The final distribution of each row over all columns."""
    probabilities, columns = Sampler(configs, "cpu").distribution(logits)
    if columns is None:
        return probabilities.tolist()
    return torch.zeros(logits.shape).scatter_(1, columns, probabilities).tolist()


def samples(logits: torch.Tensor, config: SamplingConfig, count: int) -> list[int]:
    """Columns that ``count`` seeds sample from one row."""
    noise = exponential(
        torch.arange(count), torch.zeros(count, dtype=torch.long), torch.arange(logits.shape[-1])
    )
    columns, valid = Sampler([config] * count, "cpu").sample(logits.expand(count, -1), noise)
    assert valid.all()
    return columns.tolist()


def test_defaults_equal_reference() -> None:
    config = SamplingConfig()
    assert (config.guidance, config.temperature, config.top_k, config.top_p) == (
        7.0,
        0.99,
        4096,
        0.96,
    )
    assert not config.greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance", -0.1),
        ("guidance", math.nan),
        ("guidance", math.inf),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
    ],
)
def test_value_out_of_range_raises(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: expected .*got {value}"):
        SamplingConfig(**{field: value})


def test_guide_formula() -> None:
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert guide(conditional, unconditional, 7.0).tolist() == [[4.0, -4.0]]
    assert guide(conditional, unconditional, 0.0).tolist() == [[0.5, 3.0]]
    both = guide(conditional.repeat(2, 1), unconditional.repeat(2, 1), torch.tensor([[7.0], [0]]))
    assert both.tolist() == [[4.0, -4.0], [0.5, 3.0]]


def test_guide_equal_rows_is_identity() -> None:
    torch.manual_seed(0)
    row = torch.randn(1, 500)
    assert torch.equal(guide(row, row, 7.0), row)


def test_guidance_is_computed_in_float32() -> None:
    assert (
        guide(torch.ones(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16(), 3.3).dtype == torch.float32
    )


def test_reference_sampling_keeps_half_of_codebook() -> None:
    assert reference_sampling(8192) == SamplingConfig()
    assert reference_sampling(16).top_k == 8


def test_top_k_above_codebook_raises() -> None:
    SamplingConfig(top_k=16).check_vocabulary(16, "codes")
    SamplingConfig(top_k=17, greedy=True).check_vocabulary(16, "codes")
    with pytest.raises(ConfigError, match=r"^top_k: .*0 \(off\) to 16, the number of codes.*17"):
        SamplingConfig(top_k=17).check_vocabulary(16, "codes")


def test_plain_distribution_is_softmax() -> None:
    assert spread(logits_of(0.1, 0.2, 0.7), PLAIN)[0] == pytest.approx([0.1, 0.2, 0.7])


def test_temperature_half_squares_odds() -> None:
    # Temperature 0.5 squares the odds: 1 : 4 : 49.
    config = SamplingConfig(temperature=0.5, top_k=0, top_p=1.0)
    assert spread(logits_of(0.1, 0.2, 0.7), config)[0] == pytest.approx([1 / 54, 4 / 54, 49 / 54])


@pytest.mark.parametrize("k", [3, 4, 100])
def test_top_k_of_all_changes_nothing(k: int) -> None:
    config = SamplingConfig(temperature=1.0, top_k=k, top_p=1.0)
    assert spread(logits_of(0.1, 0.2, 0.7), config)[0] == pytest.approx([0.1, 0.2, 0.7])


def test_top_k_keeps_likeliest() -> None:
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    assert spread(logits_of(0.1, 0.3, 0.6), config)[0] == pytest.approx([0.0, 1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.4, [0, 0, 1, 0]),
        (0.6, [0, 3 / 8, 5 / 8, 0]),
        (0.75, [0, 3 / 8, 5 / 8, 0]),
        (0.85, [0.15 / 0.95, 0.3 / 0.95, 0.5 / 0.95, 0]),
        (0.99, [0.15, 0.3, 0.5, 0.05]),
    ],
)
def test_top_p_keeps_smallest_group(p: float, expected: list[float]) -> None:
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=p)
    found = spread(logits_of(0.15, 0.3, 0.5, 0.05), config)[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_top_p_keeps_ties_together() -> None:
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=0.55)
    logits = logits_of(0.1, 0.2, 0.4, 0.2, 0.1)
    assert spread(logits, config)[0] == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert set(samples(logits, config, 200)) == {1, 2, 3}


def test_top_p_applies_after_top_k() -> None:
    # After top-k the odds are 0.4 : 0.6 of 0.5, so 0.6 is reached by the first alone.
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=0.6)
    assert spread(logits_of(0.3, 0.2, 0.125, 0.125), config)[0] == pytest.approx([1.0, 0, 0, 0])


def test_rows_with_different_settings() -> None:
    torch.manual_seed(0)
    configs = [
        SamplingConfig(temperature=0.7, top_k=5, top_p=0.8),
        PLAIN,
        SamplingConfig(temperature=2.0, top_k=0, top_p=0.5),
        SamplingConfig(temperature=1.0, top_k=20, top_p=1.0),
    ]
    logits = torch.randn(len(configs), 50)
    together = spread(logits, *configs)
    for row, config in enumerate(configs):
        alone = spread(logits[row : row + 1], config)[0]
        assert together[row] == pytest.approx(alone, abs=1e-6)
        assert [value > 0 for value in together[row]] == [value > 0 for value in alone]
    noise = exponential(torch.arange(4), torch.zeros(4, dtype=torch.long), torch.arange(50))
    greedy = [*configs[:3], SamplingConfig(greedy=True)]
    sampled, _ = Sampler(greedy, "cpu").sample(logits, noise)
    for row, config in enumerate(greedy):
        one = Sampler([config], "cpu").sample(logits[row : row + 1], noise[row : row + 1])[0]
        assert sampled[row] == one[0]


@pytest.mark.parametrize("top_k", [0, 3, 5])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_excluded_columns_never_sampled(top_k: int, top_p: float) -> None:
    logits = torch.tensor([[-math.inf, 0, -math.inf, 0, 0, -math.inf]])
    config = SamplingConfig(temperature=1.0, top_k=top_k, top_p=top_p)
    assert set(samples(logits, config, 300)) == {1, 3, 4}


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
@pytest.mark.parametrize("greedy", [True, False])
def test_row_without_valid_column_raises(bad: float, greedy: bool) -> None:
    logits = torch.zeros(2, 3)
    logits[1] = bad
    sampler = Sampler([SamplingConfig(greedy=greedy)] * 2, "cpu")
    _, valid = sampler.sample(logits, torch.ones(2, 3))
    assert valid.tolist() == [True, False]
    with pytest.raises(CheckpointError, match="logits contain NaN"):
        check_valid(valid)
    check_valid(valid[:1])


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        SamplingConfig(temperature=0.6, top_k=4, top_p=1.0),
        SamplingConfig(temperature=1.5, top_k=5, top_p=0.8),
        SamplingConfig(temperature=1.0, top_k=0, top_p=0.7),
    ],
)
def test_frequencies_follow_the_distribution(config: SamplingConfig) -> None:
    logits = logits_of(0.05, 0.3, 0.1, 0.2, 0.25, 0.1)
    count = 40_000
    counts = torch.tensor(samples(logits, config, count)).bincount(minlength=6) / count
    expected = torch.tensor(spread(logits, config)[0])
    # Total variation; its mean is about sqrt(5 / (2 pi n)) = 0.0045 here.
    assert (counts - expected).abs().sum() / 2 < 0.01
    assert counts[expected == 0].sum() == 0


def test_greedy_needs_no_noise() -> None:
    sampler = Sampler([SamplingConfig(greedy=True)], "cpu")
    assert sampler.sample(logits_of(0.1, 0.6, 0.3), None)[0].tolist() == [1]


def test_row_sample_same_in_any_place() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 50)
    noise = exponential(torch.arange(4), torch.arange(4), torch.arange(50))
    config = SamplingConfig(top_k=20, top_p=0.9)
    order = [2, 0, 3, 1]
    alone = [
        int(Sampler([config], "cpu").sample(logits[row : row + 1], noise[row : row + 1])[0])
        for row in order
    ]
    together = Sampler([config] * 4, "cpu").sample(logits[order], noise[order])[0]
    assert together.tolist() == alone


@pytest.mark.parametrize("top_k", [0, 30, 200])
@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.95])
def test_race_equals_sorted_sampling(top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    rows, size = 300, 100
    logits = 3 * torch.randn(rows, size)
    logits[:, 7] = -math.inf
    noise = exponential(torch.arange(rows), torch.zeros(rows, dtype=torch.long), torch.arange(size))
    config = SamplingConfig(temperature=0.9, top_k=top_k, top_p=top_p)
    sampler = Sampler([config] * rows, "cpu")
    probabilities, columns = sampler.distribution(logits)
    assert columns is not None
    places = (probabilities / noise.gather(1, columns)).argmax(dim=1, keepdim=True)
    assert torch.equal(sampler.sample(logits, noise)[0], columns.gather(1, places)[:, 0])


def test_rounding_error_changes_no_sample() -> None:
    # Neighbours in rank change places; the random numbers stay with their columns.
    torch.manual_seed(0)
    logits = torch.randn(64, 4096) / 10
    noise = exponential(torch.arange(64), torch.zeros(64, dtype=torch.long), torch.arange(4096))
    sampler = Sampler([SamplingConfig(top_k=2048, top_p=0.95)] * 64, "cpu")
    rounded = logits + 1e-6 * torch.randn(64, 4096)
    assert torch.equal(sampler.sample(logits, noise)[0], sampler.sample(rounded, noise)[0])
