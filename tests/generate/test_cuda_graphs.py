"""Captured decoding steps. Without a GPU a replay runs the captured step again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from liquidmm.generate.backends import BackendKind
from liquidmm.generate.cuda_graphs import CudaGraphs
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.outputs import ImageStep
from liquidmm.generate.requests import ImageRequest, TextRequest, TokenRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.step import DecodeStep, Sampled
from liquidmm.vocabulary import Vocabulary

WILD = SamplingConfig(guidance=2.0, temperature=2.0, top_k=10, top_p=0.9)
PLAIN = SamplingConfig(guidance=1.0, temperature=2.0, top_k=0, top_p=1.0)


class Replayed:
    """Replays a step: the same operations on the same tensors, with the results in place."""

    def __init__(self, step: DecodeStep, kv_length: int) -> None:
        self.step, self.kv_length = step, kv_length
        self.sampled: Sampled = []
        self.replays = 0

    def replay(self) -> None:
        found = self.step.run(self.kv_length, noise_ahead=False)
        self.replays += 1
        if not self.sampled:
            self.sampled += found
            return
        for old, new in zip(self.sampled, found, strict=True):
            for target, source in zip(old, new, strict=True):
                target.copy_(source)


class FakeGraphs(CudaGraphs):
    """Captures without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[Replayed] = []

    def capture(self, step: DecodeStep, kv_length: int) -> Any:
        graph = Replayed(step, kv_length)
        self.captured.append(graph)
        return graph, graph.sampled


def engine_of(
    model: Any,
    vocabulary: Vocabulary,
    config: EngineConfig | None = None,
    graphs: CudaGraphs | None = None,
) -> Engine:
    return Engine(
        model, vocabulary, unconditional=[1, 5, 3], stop=[2], config=config, graphs=graphs
    )


def events(engine: Engine, requests: list[TokenRequest]) -> list[str]:
    return sorted(f"{handle.index} {event}" for handle, event in engine.run(requests))


def requests(count: int) -> list[TokenRequest]:
    found: list[TokenRequest] = []
    for number in range(count):
        prompt = (1, *range(10, 12 + number % 5), 3)
        sampling = WILD if number % 3 else PLAIN
        if number % 5 == 4:
            found.append(
                TextRequest(
                    prompt=prompt, max_tokens=9, sampling=PLAIN, image_sampling=WILD, seed=number,
                    grid=(2, 2),
                )
            )  # fmt: skip
        else:
            found.append(ImageRequest(prompt=prompt, grid=(4, 4), sampling=sampling, seed=number))
    return found


@pytest.mark.parametrize("kind", ["torch", "transformers"])
def test_captured_steps_sample_the_same(
    llama: Any, vocabulary: Vocabulary, kind: BackendKind
) -> None:
    config = EngineConfig(slots=6, backend=kind)
    plain, graphs = engine_of(llama, vocabulary, config), FakeGraphs()
    engine = engine_of(llama, vocabulary, config, graphs)
    assert events(engine, requests(15)) == events(plain, requests(15))
    assert sum(graph.replays for graph in graphs.captured) > 30
    # Later images of the same kind replay what was captured for the first ones.
    again = [ImageRequest(prompt=(1, 9, 3), grid=(4, 4), sampling=WILD, seed=9)] * 2
    for _ in range(3):
        found = [event for _, event in engine.run(again) if isinstance(event, ImageStep)]
        assert torch.equal(found[0].codes, plain.generate_codes(again[:1])[0])
        captured = len(graphs.captured)
    for _ in engine.run(again):
        pass
    assert len(graphs.captured) == captured


def test_moved_cache_is_captured_again(llama: Any, vocabulary: Vocabulary) -> None:
    graphs = FakeGraphs()
    engine = engine_of(llama, vocabulary, graphs=graphs)
    short = ImageRequest(prompt=(1, 9, 3), grid=(3, 4), sampling=WILD)
    engine.generate_codes([short])
    first = len(graphs.captured)
    assert first > 0
    engine.generate_codes([short] * 6)
    before = len(graphs.captured)
    assert before > first
    engine.generate_codes([short])
    assert len(graphs.captured) == before + 1, "more slots have moved the cache"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_samples_the_same_with_and_without_graphs(make: Any, vocabulary: Vocabulary) -> None:
    model = make("llama").cuda()
    found = []
    for config in (
        EngineConfig(),
        EngineConfig(cuda_graphs=True),
        EngineConfig(backend="transformers"),
    ):
        engine = engine_of(model, vocabulary, config)
        found.append([events(engine, requests(10)) for _ in range(2)])
    assert found[0] == found[1] == found[2]
