from __future__ import annotations

import math

import pytest
import torch

from liquidmm.errors import ConfigError
from liquidmm.generate import sampling
from liquidmm.generate.sampling import SamplingConfig, distribution, draw, forbid, guide

PLAIN = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def spread(logits: torch.Tensor, config: SamplingConfig) -> list[float]:
    probabilities, columns = distribution(logits, config)
    return torch.zeros(logits.shape).scatter_(1, columns, probabilities)[0].tolist()


def test_defaults_are_the_release() -> None:
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
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^sampling\.{field}: {value} is out of range"):
        SamplingConfig(**{field: value})


def test_guidance_by_hand() -> None:
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert guide(conditional, unconditional, 7.0).tolist() == [[4.0, -4.0]]
    assert guide(conditional, unconditional, 0.0).tolist() == [[0.5, 3.0]]
    assert guide(conditional, unconditional, 1.0) is conditional


def test_guidance_is_computed_in_float32() -> None:
    assert (
        guide(torch.ones(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16(), 3.3).dtype == torch.float32
    )


def test_plain_distribution_is_softmax() -> None:
    assert spread(logits_of(0.1, 0.2, 0.7), PLAIN) == pytest.approx([0.1, 0.2, 0.7])


def test_temperature_by_hand() -> None:
    # Temperature 0.5 squares the odds: 1 : 4 : 49.
    config = SamplingConfig(temperature=0.5, top_k=0, top_p=1.0)
    assert spread(logits_of(0.1, 0.2, 0.7), config) == pytest.approx([1 / 54, 4 / 54, 49 / 54])


@pytest.mark.parametrize("k", [3, 4, 100])
def test_top_k_of_all_changes_nothing(k: int) -> None:
    config = SamplingConfig(temperature=1.0, top_k=k, top_p=1.0)
    assert spread(logits_of(0.1, 0.2, 0.7), config) == pytest.approx([0.1, 0.2, 0.7])


def test_top_k_by_hand() -> None:
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    assert spread(logits_of(0.1, 0.3, 0.6), config) == pytest.approx([0.0, 1 / 3, 2 / 3])


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
def test_top_p_keeps_the_smallest_group_that_reaches_p(p: float, expected: list[float]) -> None:
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=p)
    assert spread(logits_of(0.15, 0.3, 0.5, 0.05), config) == pytest.approx(expected, abs=1e-6)


def test_top_p_counts_what_top_k_left() -> None:
    # After top-k the odds are 0.4 : 0.6 of 0.5, so 0.6 is reached by the first alone.
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=0.6)
    assert spread(logits_of(0.3, 0.2, 0.125, 0.125), config) == pytest.approx([1.0, 0, 0, 0])


@pytest.mark.parametrize("top_k", [0, 3, 5])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_forbidden_columns_are_never_drawn(top_k: int, top_p: float) -> None:
    logits = forbid(torch.zeros(1, 6), [0, 2, 5])
    config = SamplingConfig(temperature=1.0, top_k=top_k, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    drawn = {int(draw(logits, config, [generator])) for _ in range(300)}
    assert drawn <= {1, 3, 4}
    assert len(drawn) == 3


def test_forbid_leaves_its_input_alone() -> None:
    logits = torch.zeros(1, 3)
    assert forbid(logits, [1]).tolist() == [[0.0, -math.inf, 0.0]]
    assert logits.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
def test_a_row_without_choice_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="no id that may be drawn"):
        draw(torch.full((1, 3), bad), PLAIN, [torch.Generator()])


def test_frequencies_follow_the_distribution() -> None:
    logits = logits_of(0.1, 0.2, 0.7).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    counts = draw(logits, PLAIN, [generator] * 4000).bincount(minlength=3) / 4000
    assert counts.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_hit_possible_columns(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling.torch, "rand", lambda *_, **__: torch.tensor([uniform]))
    logits = forbid(torch.zeros(1, 5), [0, 4])
    assert int(draw(logits, PLAIN, [torch.Generator()])) == (1 if uniform == 0 else 3)


def test_greedy_takes_the_likeliest_and_no_randomness() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    config = SamplingConfig(greedy=True)
    assert draw(logits_of(0.1, 0.6, 0.3), config, [generator]).tolist() == [1]
    assert torch.equal(generator.get_state(), before)
    assert spread(logits_of(0.1, 0.6, 0.3), config) == [0.0, 1.0, 0.0]


def test_a_row_draws_the_same_in_any_place() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 50)
    config = SamplingConfig(top_k=20, top_p=0.9)

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    alone = [int(draw(logits[row : row + 1], config, [generator(row)])) for row in range(4)]
    order = [2, 0, 3, 1]
    together = draw(logits[order], config, [generator(row) for row in order]).tolist()
    assert together == [alone[row] for row in order]
