from __future__ import annotations

import pytest
import torch

from liquidmm.errors import ConfigError
from liquidmm.generate.rng import check_seed, exponential, splitmix64


def test_splitmix64_equals_published_outputs() -> None:
    # The first outputs of the published generator for two seeds.
    outputs = splitmix64(torch.tensor(1234567), torch.arange(5)).tolist()
    assert [value % 2**64 for value in outputs] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    [first] = splitmix64(torch.tensor(0), torch.arange(1)).tolist()
    assert first % 2**64 == 0xE220A8397B1DCDAF


def test_number_depends_on_seed_step_and_column_only() -> None:
    columns = torch.arange(50)
    seeds, steps = torch.tensor([3, 9, 3]), torch.tensor([0, 7, 1])
    numbers = exponential(seeds, steps, columns)
    for row in range(3):
        alone = exponential(seeds[row : row + 1], steps[row : row + 1], columns)
        assert torch.equal(numbers[row], alone[0])
    some = torch.tensor([[7, 49, 0], [1, 1, 2], [5, 6, 7]])
    assert torch.equal(exponential(seeds, steps, some), numbers.gather(1, some))
    ahead = exponential(seeds, steps + torch.arange(4)[:, None], columns)
    assert torch.equal(ahead[0], numbers)
    assert torch.equal(ahead[1, 0], numbers[2])
    assert len(set(numbers.flatten().tolist())) == 150


def test_numbers_are_exponential_and_independent() -> None:
    seeds = torch.arange(400)
    numbers = exponential(seeds, torch.zeros_like(seeds), torch.arange(500)).double()
    assert numbers.min() > 0
    assert torch.isfinite(numbers).all()
    assert numbers.mean().item() == pytest.approx(1, abs=0.01)
    assert numbers.var().item() == pytest.approx(1, abs=0.02)
    # The largest distance to the distribution function; 0.1 % of samples exceed 1.95 / sqrt(n).
    ordered = numbers.flatten().sort().values
    places = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (places - (1 - (-ordered).exp())).abs().max() < 1.95 / len(ordered) ** 0.5
    uniform = (-numbers).exp() - 0.5
    for shift in ((0, 1), (1, 0), (1, 1)):
        moved = uniform.roll(shift, (0, 1))
        assert abs((uniform * moved).mean().item()) < 4 / 12 / len(ordered) ** 0.5


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range_raises(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"^seed: .*from 0 .*got {seed}"):
        check_seed(seed)
    assert check_seed(2**63 - 1) == 2**63 - 1
