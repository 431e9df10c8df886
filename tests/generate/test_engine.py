from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.generate.backends import Backend, BackendKind, make_backend
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.outputs import End, Event, ImageRows, ImageStep, TextStep
from liquidmm.generate.requests import ImageRequest, TextRequest, TokenRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.vocabulary import Vocabulary

STOP = 2
UNCONDITIONAL = (1, 5, 3)
PROMPTS = [(1, 10, 11, 12, 3), (1, 20, 3), (1, 7, 8, 9, 10, 11, 30, 31, 12, 3)]
GUIDED = SamplingConfig(guidance=3.0, top_k=12)
GREEDY_SAMPLING = SamplingConfig(greedy=True)
GREEDY_GUIDED = SamplingConfig(greedy=True, guidance=3.0)
WILD = SamplingConfig(temperature=3.0, top_k=0, top_p=1.0)

CONFIGS = {
    "cpu": EngineConfig(),
    "torch": EngineConfig(backend="torch"),
    "transformers": EngineConfig(backend="transformers"),
    "few slots": EngineConfig(slots=3),
}


def engine_of(
    model: Any,
    vocabulary: Vocabulary,
    config: EngineConfig | None = None,
    backend: Backend | None = None,
) -> Engine:
    return Engine(
        model, vocabulary, unconditional=UNCONDITIONAL, stop=[STOP], config=config, backend=backend
    )


def stream(engine: Engine, request: TokenRequest) -> Iterator[Event]:
    """Yield the events of one request."""
    return (event for _, event in engine.run([request]))


def texts(engine: Engine, requests: Sequence[TokenRequest]) -> list[tuple[list[int], str]]:
    """Return the tokens and the finish of each text."""
    tokens: list[list[int]] = [[] for _ in requests]
    finish = [""] * len(requests)
    for handle, event in engine.run(requests):
        if isinstance(event, TextStep):
            tokens[handle.index].append(event.token)
        elif isinstance(event, End):
            finish[handle.index] = event.finish
    return list(zip(tokens, finish, strict=True))


@pytest.fixture(params=CONFIGS)
def engine(request: pytest.FixtureRequest, llama: Any, vocabulary: Vocabulary) -> Engine:
    return engine_of(llama, vocabulary, CONFIGS[request.param])


def image(prompt: tuple[int, ...], seed: int = 0, **changes: Any) -> ImageRequest:
    fields = {"prompt": prompt, "grid": (2, 3), "sampling": GUIDED, "seed": seed, **changes}
    return ImageRequest(**fields)


def text(prompt: tuple[int, ...], **changes: Any) -> TextRequest:
    fields = {"max_tokens": 12, "sampling": GREEDY_SAMPLING, "image_sampling": GUIDED, **changes}
    return TextRequest(prompt=prompt, **fields)


def padded(prompts: list[tuple[int, ...]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class Guidance(LogitsProcessor):
    """Guidance in transformers' generate: the second half of the batch is unconditional."""

    def __init__(self, scale: float, part: slice) -> None:
        self.scale, self.part = scale, part

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        conditional, unconditional = scores[:, self.part].chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.part] = guided.repeat(2, 1)
        return masked


def test_greedy_text_equals_transformers_generate(
    model: Any, vocabulary: Vocabulary, kinds: list[BackendKind]
) -> None:
    expected = model.generate(
        **padded(PROMPTS),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[3, 4, 5, *range(40, vocabulary.size)],
    )[:, -12:]
    for kind in kinds:
        config = EngineConfig(backend=kind)
        engine = Engine(model, vocabulary, unconditional=UNCONDITIONAL, stop=[], config=config)
        found = texts(engine, [text(prompt) for prompt in PROMPTS])
        assert [tokens for tokens, _ in found] == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_guided_image_equals_transformers_generate(
    model: Any, vocabulary: Vocabulary, scale: float, kinds: list[BackendKind]
) -> None:
    expected = model.generate(
        **padded([*PROMPTS, *[UNCONDITIONAL] * len(PROMPTS)]),
        max_new_tokens=12,
        do_sample=False,
        logits_processor=[Guidance(scale, vocabulary.image_slice)],
    )[: len(PROMPTS), -12:]
    codes = vocabulary.to_codes(expected).view(-1, 3, 4)
    sampling = SamplingConfig(greedy=True, guidance=scale)
    for kind in kinds:
        engine = engine_of(model, vocabulary, EngineConfig(backend=kind))
        found = engine.generate_codes([image(p, grid=(3, 4), sampling=sampling) for p in PROMPTS])
        assert [grid.tolist() for grid in found] == codes.tolist()


def test_image_codes_have_grid_shape_and_codebook_range(engine: Engine) -> None:
    [codes] = engine.generate_codes([image(PROMPTS[0], sampling=WILD)])
    assert codes.shape == (2, 3)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 24


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_seed_result_same_alone_and_in_any_slot(
    engine: Engine, llama: Any, vocabulary: Vocabulary, guidance: float
) -> None:
    sampling = SamplingConfig(guidance=guidance, temperature=2.0, top_k=0)
    requests = [image(PROMPTS[number % 3], seed=number, sampling=sampling) for number in range(9)]
    plain = engine_of(llama, vocabulary)
    alone = [plain.generate_codes([request])[0].tolist() for request in requests]
    assert [codes.tolist() for codes in engine.generate_codes(requests)] == alone
    order = [6, 2, 0, 5, 1, 8, 3, 4, 7]
    shuffled = engine.generate_codes([requests[place] for place in order])
    assert [codes.tolist() for codes in shuffled] == [alone[place] for place in order]
    assert len({str(codes) for codes in alone}) == 9


def test_guidance_zero_ignores_prompt(engine: Engine) -> None:
    sampling = SamplingConfig(guidance=0.0, top_k=0)
    first, second = engine.generate_codes(
        [image(prompt, sampling=sampling) for prompt in PROMPTS[:2]]
    )
    assert first.tolist() == second.tolist()


def mixture(count: int) -> list[ImageRequest | TextRequest]:
    """Return requests of every kind, size and setting."""
    kinds: list[Any] = [
        lambda n: image(PROMPTS[n % 3], seed=n, preview_every=1),
        lambda n: text(PROMPTS[n % 2], seed=n, sampling=WILD, max_tokens=1 + n),
        lambda n: image(PROMPTS[n % 3], seed=n, grid=(1, 5), sampling=WILD),
        lambda n: text(PROMPTS[n % 3], seed=n, sampling=WILD, grid=(2, 2), max_tokens=20),
        lambda n: image(PROMPTS[n % 3], seed=n, sampling=GREEDY_GUIDED, grid=(4, 3)),
        lambda n: text(PROMPTS[n % 3]),
    ]
    return [kinds[number % len(kinds)](number) for number in range(count)]


def shown(steps: list[Any]) -> list[str]:
    return [f"{type(step).__name__} {step!r}" for step in steps]


def test_mixed_batch_gives_each_request_its_own_events(
    engine: Engine, llama: Any, vocabulary: Vocabulary
) -> None:
    requests = mixture(12)
    plain = engine_of(llama, vocabulary)
    alone = [shown(list(stream(plain, request))) for request in requests]
    together: dict[int, list[Any]] = {place: [] for place in range(len(requests))}
    for handle, event in engine.run(requests):
        together[handle.index].append(event)
    assert [shown(steps) for steps in together.values()] == alone
    kinds = {type(step) for steps in together.values() for step in steps}
    assert kinds == {TextStep, ImageRows, ImageStep, End}


def test_later_requests_join_running_ones(llama: Any, vocabulary: Vocabulary) -> None:
    requests = mixture(12)
    alone = [shown(list(stream(engine_of(llama, vocabulary), request))) for request in requests]
    engine = engine_of(llama, vocabulary, EngineConfig(slots=6))
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.step()
    while engine.step():
        pass
    assert all(handle.done for handle in handles)
    assert [shown(list(handle.events)) for handle in handles] == alone


def test_interleaved_and_closed_streams(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    request = text(PROMPTS[0], sampling=WILD, seed=1)
    expected = list(stream(engine, request))
    first = stream(engine, request)
    second = engine.run([text(PROMPTS[2], sampling=WILD)])
    next(second)
    assert next(first) == expected[0]
    second.close()
    assert [expected[0], *first] == expected
    assert not engine.step()


def test_threads_share_engine(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    requests = mixture(6)
    expected = [shown(list(stream(engine, request))) for request in requests]
    found: dict[int, list[str]] = {}

    def work(place: int) -> None:
        found[place] = shown(list(stream(engine, requests[place])))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(6)] == expected


def test_no_requests_yield_nothing(engine: Engine) -> None:
    assert engine.generate_codes([]) == []
    assert list(engine.run([])) == []
    assert not engine.step()


def test_progress_counts_image_tokens(llama: Any, vocabulary: Vocabulary) -> None:
    seen: list[tuple[int, int]] = []
    engine = engine_of(llama, vocabulary, EngineConfig(slots=4))
    engine.generate_codes(
        [image(prompt) for prompt in PROMPTS],
        progress=lambda done, total: seen.append((done, total)),
    )
    # Two guided images at a time.
    assert seen == [(done, 18) for done in (2, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18)]


def test_invalid_requests_fail_alone(engine: Engine) -> None:
    long = (1,) * 60
    requests: list[Any] = [
        image(PROMPTS[0], seed=3),
        image((*long, 3)),
        image(PROMPTS[0], sampling=SamplingConfig(top_k=25)),
        text((1,) * 64),
        text(PROMPTS[0], sampling=SamplingConfig(top_k=41)),
        text(PROMPTS[0]),
        image(PROMPTS[0], grid=(0, 3)),
        image(()),
    ]
    ends = {handle.index: event for handle, event in engine.run(requests) if isinstance(event, End)}
    assert {index for index, end in ends.items() if end.error is None} == {0, 5}
    for index, message in {
        1: r"^prompt: 61 tokens and 6 image tokens .* 64 tokens",
        2: r"^top_k: .*24, the number of codes.*25",
        3: r"^prompt: 64 tokens and 1 text token .* 64 tokens",
        4: r"^top_k: .*40, the number of text tokens.*41",
        6: r"^grid: .*1 x 1.*0 x 3",
        7: r"^prompt: is empty",
    }.items():
        with pytest.raises((ConfigError, DataError), match=message):
            engine.submit(requests[index])
        assert re.search(message, str(ends[index].error))
    with pytest.raises(DataError, match="61 tokens and 6 image tokens"):
        engine.generate_codes([requests[0], requests[1]])


def test_prompt_may_fill_context(engine: Engine) -> None:
    fits = (1,) * 57 + (3,)
    assert engine.generate_codes([image(fits)])[0].shape == (2, 3)
    [(tokens, finish)] = texts(engine, [text((1,) * 63, sampling=WILD)])
    assert (len(tokens), finish) in ((1, "length"), (0, "stop"))


@pytest.mark.parametrize("bad", [0, -3])
def test_numbers_out_of_range_raise(bad: int) -> None:
    with pytest.raises(ConfigError, match=rf"^max_tokens: .*at least 1, got {bad}"):
        text((1,), max_tokens=bad)
    with pytest.raises(ConfigError, match=rf"^slots: .*at least 2, got {bad}"):
        EngineConfig(slots=bad)
    with pytest.raises(ConfigError, match=rf"^seed: .*from 0 .*got {bad - 1}"):
        image(PROMPTS[0], seed=bad - 1)
    with pytest.raises(ConfigError, match=rf"^preview_every: .*at least 0, got {bad - 1}"):
        image(PROMPTS[0], preview_every=bad - 1)


def test_engine_rejects_unsupported_config(make: Any, vocabulary: Vocabulary) -> None:
    for family, config, message in (
        ("gemma2", {"quantize": "int8"}, r"quantize: 'int8' .*\(cpu: the family 'gemma2'"),
        ("llama", {"quantize": "int8", "backend": "transformers"}, "does not quantize"),
        ("llama", {"quantize": "int9"}, "quantize: 'int9' is unknown.*'int8'"),
        ("llama", {"backend": "tourch"}, "backend: 'tourch' is unknown.*'torch'"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine_of(make(family), vocabulary, EngineConfig(**config))
    with pytest.raises(ConfigError, match="cuda_graphs: .*CUDA.*cpu"):
        engine_of(make("llama"), vocabulary, EngineConfig(cuda_graphs=True))
    engine = engine_of(make("gemma2"), vocabulary)
    assert engine.backend_kind == "transformers"
    assert engine.generate_codes([image(PROMPTS[0])])[0].shape == (2, 3)


@pytest.mark.parametrize("kind", ["cpu", "torch", "transformers"])
def test_nan_weights_raise_and_engine_continues(
    make: Any, vocabulary: Vocabulary, kind: BackendKind
) -> None:
    model = make("llama")
    engine = engine_of(model, vocabulary, EngineConfig(backend=kind))
    kept = engine.submit(text(PROMPTS[0]))
    while engine.step():
        pass
    head = model.lm_head.weight.data[50].clone()
    model.lm_head.weight.data[50] = torch.nan
    with pytest.raises(CheckpointError, match=r"logits contain NaN"):
        engine.generate_codes([image(PROMPTS[0], sampling=WILD)])
    assert kept.done
    model.lm_head.weight.data[50] = head
    if kind == "transformers":  # the others read the weights once
        assert engine.generate_codes([image(PROMPTS[0])])[0].shape == (2, 3)
    assert texts(engine, [text(PROMPTS[0])])[0][0]


class Scripted:
    """A backend that gives fixed text tokens and remembers the tokens of each slot."""

    device = torch.device("cpu")
    batch_invariant = False

    def __init__(self, wanted: list[int]) -> None:
        self.wanted = list(wanted)
        self.slots: dict[int, dict[int, int]] = {}

    def reserve(self, slots: int, length: int) -> None:
        """Nothing to do."""

    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        for place, (row, start) in enumerate(zip(tokens.tolist(), starts.tolist(), strict=True)):
            assert start + len(row) <= kv_length
            cached = self.slots.setdefault(first_slot + place, {})
            cached.update({start + index: token for index, token in enumerate(row)})
        return torch.zeros(*tokens.shape, 1)

    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        logits = torch.zeros(len(hidden), tokens.stop - tokens.start)
        if tokens.start == 0:
            logits[:, self.wanted.pop(0)] = 50.0
        return logits

    def copy(self, source: int, targets: list[int], length: int) -> None:
        for target in targets:
            kept = {place: self.slots[source][place] for place in range(length)}
            self.slots.setdefault(target, {}).update(kept)

    def slot(self, number: int) -> list[int]:
        """Tokens of a slot in order."""
        cached = self.slots[number]
        return [cached[place] for place in range(len(cached))]


def scripted(llama: Any, vocabulary: Vocabulary, wanted: list[int]) -> tuple[Engine, Scripted]:
    backend = Scripted(wanted)
    return engine_of(llama, vocabulary, backend=backend), backend


def test_text_and_images_alternate(llama: Any, vocabulary: Vocabulary) -> None:
    engine, backend = scripted(llama, vocabulary, [8, 9, 3, 10, 3, 11, STOP])
    steps = list(stream(engine, text((1, 6), grid=(2, 2), seed=3)))
    assert [type(step) for step in steps] == [
        *(TextStep, TextStep, ImageStep, TextStep, ImageStep, TextStep, End)
    ]
    assert steps[-1] == End(finish="stop")
    first, second = (step.codes for step in steps if isinstance(step, ImageStep))
    assert first.shape == second.shape == (2, 2)
    codes = [vocabulary.to_token_ids(grid.flatten()).tolist() for grid in (first, second)]
    whole = [1, 6, 8, 9, 3, *codes[0], 4, 10, 3, *codes[1], 4, 11]
    assert backend.slot(1)[: len(whole)] == whole
    # The unconditional slot starts again for the second image, whose last code is not fed. During
    # text it runs idle and overwrites its first position.
    assert backend.slot(2)[1 : len(UNCONDITIONAL) + 3] == [*UNCONDITIONAL[1:], *codes[1][:3]]


def test_interleaved_image_skipped_when_context_full_or_forbidden(
    llama: Any, vocabulary: Vocabulary
) -> None:
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(stream(engine, text((1, 6), grid=None)))
    assert {type(step) for step in steps} == {TextStep, End}
    assert vocabulary.boi not in [step.token for step in steps if isinstance(step, TextStep)]
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(stream(engine, text((1,) * 54, grid=(2, 4))))
    assert {type(step) for step in steps} == {TextStep, End}
    assert len(steps) == 64 - 54 + 1
    # 53 tokens, boi, 8 codes, eoi and one text token are 64: it just fits.
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(stream(engine, text((1,) * 53, grid=(2, 4))))
    assert [type(step) for step in steps] == [ImageStep, TextStep, End]


def test_max_tokens_ends_text_with_images(llama: Any, vocabulary: Vocabulary) -> None:
    engine, _ = scripted(llama, vocabulary, [8, 3, 9, 10, 11, 12])
    steps = list(stream(engine, text((1,), grid=(2, 2), max_tokens=4)))
    assert [type(step) for step in steps] == [TextStep, ImageStep, TextStep, TextStep, End]
    assert steps[-1] == End(finish="length")
    engine, _ = scripted(llama, vocabulary, [8, 3])
    steps = list(stream(engine, text((1,), grid=(2, 2), max_tokens=2)))
    assert [type(step) for step in steps] == [TextStep, ImageStep, End]


def test_previews_every_n_rows(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    request = image(PROMPTS[0], grid=(5, 3), preview_every=2)
    *previews, whole, end = list(stream(engine, request))
    assert isinstance(whole, ImageStep)
    assert end == End(finish="stop")
    assert [tuple(step.codes.shape) for step in previews] == [(2, 3), (4, 3)]
    for step in previews:
        assert torch.equal(step.codes, whole.codes[: len(step.codes)])


class Recording:
    """Another backend, with the shapes of the tokens fed to it."""

    def __init__(self, backend: Backend) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.device, self.batch_invariant = backend.device, backend.batch_invariant
        self.reserve, self.logits, self.copy = backend.reserve, backend.logits, backend.copy
        self._forward = backend.forward

    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        return self._forward(tokens, starts, first_slot, kv_length)


@pytest.mark.parametrize(
    ("kind", "prefills", "slots"),
    [
        # The prompt and the unconditional one without their last tokens.
        ("cpu", [(1, 4), (1, 2)], 10),
        # Round numbers of tokens and of slots, two of which are idle.
        ("torch", [(1, 16), (1, 16)], 12),
    ],
)
def test_prompt_prefilled_once_for_all_samples(
    llama: Any,
    vocabulary: Vocabulary,
    kind: BackendKind,
    prefills: list[tuple[int, int]],
    slots: int,
) -> None:
    backend = Recording(make_backend(llama, kind))
    engine = engine_of(llama, vocabulary, backend=backend)
    engine.generate_codes([image(PROMPTS[0], seed=seed) for seed in range(5)])
    assert backend.shapes == [*prefills, *[(slots, 1)] * 6]


def test_special_tokens_never_sampled_as_text(engine: Engine) -> None:
    requests = [text(PROMPTS[0], sampling=WILD, seed=seed) for seed in range(20)]
    for tokens, _ in texts(engine, requests):
        assert not {STOP, 3, 4, 5} & set(tokens)
        assert max(tokens, default=0) < 40


@pytest.mark.parametrize("kind", ["cpu", "torch", "transformers"])
def test_many_requests_leak_no_tensors(
    llama: Any, vocabulary: Vocabulary, kind: BackendKind
) -> None:
    engine = engine_of(llama, vocabulary, EngineConfig(slots=8, backend=kind))

    def tensors() -> tuple[int, int]:
        gc.collect()
        found = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
        return len(found), sum(each.numel() for each in found)

    for _ in engine.run(mixture(24)):
        pass
    before = tensors()
    for _ in engine.run(mixture(24)):
        pass
    assert tensors() == before


def test_cancelled_request_yields_nothing_more(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    first, second = text(PROMPTS[0]), text(PROMPTS[2])
    expected = list(stream(engine, second))
    found: list[Event] = []
    for handle, event in engine.run([first, second]):
        if handle.index == 0:
            engine.cancel(handle)
            assert not found or handle.done
        else:
            found.append(event)
    assert found == expected
    assert not engine.step()
