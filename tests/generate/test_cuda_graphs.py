"""Recorded passes. Without a GPU a recording is played by running the recorded pass again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from liquidmm.generate.batch import Batch
from liquidmm.generate.decoders.choice import Kind
from liquidmm.generate.decoders.decoder import Decoder
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.graphs import Drawn, Graphs
from liquidmm.generate.plan import Plan
from liquidmm.generate.requests import ImageRequest, ImageStep, Request, TextRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.scheduler import Scheduler, Settings
from liquidmm.vocabulary import Vocabulary

WILD = SamplingConfig(guidance=2.0, temperature=2.0, top_k=10, top_p=0.9)
PLAIN = SamplingConfig(guidance=1.0, temperature=2.0, top_k=0, top_p=1.0)


class Replayed:
    """Plays a pass: the same operations on the same tensors, results where they were."""

    def __init__(self, plan: Plan, decoder: Decoder, span: int) -> None:
        self.pass_ = (plan, decoder, span)
        self.drawn: Drawn = []
        self.plays = 0

    def replay(self) -> None:
        plan, decoder, span = self.pass_
        found = plan.run(decoder, span, ahead=False)
        self.plays += 1
        if not self.drawn:
            self.drawn += found
            return
        for old, new in zip(self.drawn, found, strict=True):
            for mine, its in zip(old, new, strict=True):
                mine.copy_(its)


class FakeGraphs(Graphs):
    """Records without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Replayed] = []

    def _record(self, plan: Plan, decoder: Decoder, span: int) -> Any:
        graph = Replayed(plan, decoder, span)
        self.recorded.append(graph)
        return graph, graph.drawn


def requests(count: int) -> list[Request]:
    found: list[Request] = []
    for number in range(count):
        prompt = (1, *range(10, 12 + number % 5), 3)
        sampling = WILD if number % 3 else PLAIN
        if number % 5 == 4:
            found.append(
                TextRequest(
                    prompt=prompt, max_tokens=9, sampling=PLAIN, picture_sampling=WILD, seed=number,
                    grid=(2, 2),
                )
            )  # fmt: skip
        else:
            found.append(ImageRequest(prompt=prompt, grid=(4, 4), sampling=sampling, seed=number))
    return found


@pytest.mark.parametrize("kind", ["packed", "family"])
def test_recorded_passes_draw_the_same(llama: Any, vocabulary: Vocabulary, kind: Kind) -> None:
    config = EngineConfig(rows=6, decoder=kind)
    plain = Engine(llama, vocabulary, unconditional=[1, 5, 3], stop=[2], config=config)
    expected = sorted(map(str, plain.answers(requests(15))))
    engine = Engine(llama, vocabulary, unconditional=[1, 5, 3], stop=[2], config=config)
    graphs = FakeGraphs()
    settings = Settings(
        vocabulary=vocabulary,
        unconditional=(1, 5, 3),
        stop=frozenset([2]),
        context=engine.context,
        rows=6,
        window=0,
    )
    batch = Batch(engine.decoder, vocabulary, (1, 5, 3), engine.context, graphs)
    engine._scheduler = Scheduler(batch, settings)
    assert sorted(map(str, engine.answers(requests(15)))) == expected
    plays = [graph.plays for graph in graphs.recorded]
    assert sum(plays) > 30
    # Pictures of the same kind that come later play what was recorded for the first ones.
    again = [ImageRequest(prompt=(1, 9, 3), grid=(4, 4), sampling=WILD, seed=9)] * 2
    for _ in range(3):
        found = [step for _, step in engine.answers(again) if isinstance(step, ImageStep)]
        assert torch.equal(found[0].codes, plain.pictures(again[:1])[0])
        recorded = len(graphs.recorded)
    for _ in engine.answers(again):
        pass
    assert len(graphs.recorded) == recorded


def test_a_cache_that_has_moved_is_recorded_anew(llama: Any, vocabulary: Vocabulary) -> None:
    engine = Engine(llama, vocabulary, unconditional=[1, 5, 3], stop=[2])
    graphs = FakeGraphs()
    batch = Batch(engine.decoder, vocabulary, (1, 5, 3), engine.context, graphs)
    settings = Settings(
        vocabulary=vocabulary, unconditional=(1, 5, 3), stop=frozenset(), context=64, rows=32,
        window=0,
    )  # fmt: skip
    engine._scheduler = Scheduler(batch, settings)
    short = ImageRequest(prompt=(1, 9, 3), grid=(3, 4), sampling=WILD)
    engine.pictures([short])
    first = len(graphs.recorded)
    assert first > 0
    engine.pictures([short] * 6)
    assert len(graphs.recorded) > first
    before = len(graphs.recorded)
    engine.pictures([short])
    assert len(graphs.recorded) == before + 1, "more rows have moved the cache"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_with_and_without_graphs(make: Any, vocabulary: Vocabulary) -> None:
    model = make("llama").cuda()
    drawn = []
    for config in (EngineConfig(), EngineConfig(graphs=True), EngineConfig(decoder="family")):
        engine = Engine(model, vocabulary, unconditional=[1, 5, 3], stop=[2], config=config)
        drawn.append([sorted(map(str, engine.answers(requests(10)))) for _ in range(2)])
    assert drawn[0] == drawn[1] == drawn[2]
