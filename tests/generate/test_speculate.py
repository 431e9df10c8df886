from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.plan import Lane
from liquidmm.generate.requests import ImageRequest
from liquidmm.generate.sampling import Sampler, SamplingConfig, guide
from liquidmm.generate.speculate import Window
from liquidmm.vocabulary import Vocabulary

CODES = 3
TOY = Vocabulary(text_size=6, image_offset=6, codebook_size=CODES, boi=3, eoi=4, unconditional=5)
SETTINGS = SamplingConfig(guidance=2.0, temperature=0.8, top_k=3, top_p=0.85)


class Toy:
    """A language model of two codes' memory, given by a table; row 2 is the unconditional one."""

    device = torch.device("cpu")
    exact = False

    def __init__(self) -> None:
        self.table = torch.randn(
            2, CODES + 1, CODES + 1, CODES, generator=torch.Generator().manual_seed(5)
        )
        self.codes: dict[int, list[int]] = {1: [], 2: []}
        self.passes = 0

    def score(self, row: int, codes: list[int]) -> Tensor:
        """Logits of the code that follows ``codes``."""
        before, last = ([CODES, CODES, *codes])[-2:]
        return self.table[row - 1, before, last]

    def reserve(self, rows: int, length: int) -> None:
        """Any room is there."""

    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        self.passes += 1
        rows = []
        for place, (tokens, start) in enumerate(zip(ids.tolist(), starts.tolist(), strict=True)):
            held = self.codes[first + place]
            del held[start:]
            scores = []
            for token in tokens:
                if token >= TOY.image_offset:
                    held.append(token - TOY.image_offset)
                scores.append(self.score(first + place, held))
            rows.append(torch.stack(scores))
        return torch.stack(rows)

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        return hidden

    def copy(self, source: int, targets: list[int], length: int) -> None:
        raise AssertionError


def draw_picture(window: int, seed: int, count: int, toy: Toy) -> list[int]:
    """Draw ``count`` codes of the toy, a window at a time."""
    drafts = Window(window, (1, count), TOY)
    lane = Lane(
        sampling=SETTINGS, seed=seed, part="codes", rows=[0, 1], lengths=[0, 0], feed=[3, 3],
        guided=True,
    )  # fmt: skip
    codes: list[int] = []
    while len(codes) < count:
        drawn = drafts.run(toy, lane, codes, 100)
        codes += drawn
        lane.step += len(drawn)
        # The toy holds codes only: boi is at no position.
        lane.lengths = [len(codes) - 1] * 2
        lane.feed = [TOY.image_offset + codes[-1]] * 2
    return codes


def exact(count: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of codes, by enumeration of the final distributions."""
    toy = Toy()
    found = {}
    for codes in itertools.product(range(CODES), repeat=count):
        probability = 1.0
        for place in range(count):
            seen = list(codes[:place])
            logits = guide(toy.score(1, seen)[None], toy.score(2, seen)[None], SETTINGS.guidance)
            values, columns = Sampler([SETTINGS], "cpu").distribution(logits)
            assert columns is not None
            probability *= float(values[columns == codes[place]])
        found[codes] = probability
    return found


def test_the_distribution_is_that_of_one_code_at_a_time() -> None:
    count, seeds = 4, 3000
    expected = exact(count)
    assert sum(expected.values()) == pytest.approx(1)
    assert 0 < sum(value == 0 for value in expected.values()) < 81, "top-p must bite"
    toy = Toy()
    found = dict.fromkeys(expected, 0.0)
    for seed in range(seeds):
        found[tuple(draw_picture(4, seed, count, toy))] += 1 / seeds
    # Total variation of n draws from k outcomes: its mean is below sqrt(k / (2 pi n)), and it
    # exceeds that by e with a probability below exp(-2 n e**2), here 1 in 500.
    possible = sum(value > 0 for value in expected.values())
    mean = (possible / (2 * torch.pi * seeds)) ** 0.5
    distance = sum(abs(found[codes] - expected[codes]) for codes in expected) / 2
    assert distance < mean + 0.0322
    assert all(found[codes] == 0 for codes, value in expected.items() if value == 0)
    assert toy.passes < 0.8 * seeds * count, "windows must save passes"


@pytest.mark.parametrize("window", [2, 3, 7, 30])
def test_a_seed_draws_the_same_codes_in_any_window(window: int) -> None:
    for seed in range(25):
        one_by_one = draw_picture(1, seed, 12, Toy())
        assert draw_picture(window, seed, 12, Toy()) == one_by_one


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("greedy", [True, False])
def test_pictures_of_a_model_are_those_of_the_plain_loop(
    llama: Any, vocabulary: Vocabulary, guidance: float, greedy: bool
) -> None:
    sampling = SamplingConfig(guidance=guidance, temperature=1.0, top_k=8, greedy=greedy)
    requests = [
        ImageRequest(prompt=(1, 10, 9, 3), grid=(6, 6), sampling=sampling, seed=seed)
        for seed in range(4)
    ]
    passes = []
    drawn = []
    for window in (0, 5, 36):
        engine = Engine(
            llama, vocabulary, unconditional=[1, 5, 3], stop=[2], config=EngineConfig(window=window)
        )
        drawn.append([engine.pictures([request])[0].tolist() for request in requests])
        passes.append(_passes(engine, requests[0]))
    assert drawn[0] == drawn[1] == drawn[2]
    assert passes[0] == 36
    assert all(fewer < 36 for fewer in passes[1:])


def _passes(engine: Engine, request: ImageRequest) -> int:
    answer = engine.submit(request)
    count = 1
    while engine.step():
        count += 1
    assert answer.done
    return count
