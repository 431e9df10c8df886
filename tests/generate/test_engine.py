from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.generate.decoders.choice import Kind
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.requests import (
    End,
    ImageRequest,
    ImageRows,
    ImageStep,
    TextRequest,
    TextStep,
)
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.vocabulary import Vocabulary

STOP = 2
UNCONDITIONAL = (1, 5, 3)
PROMPTS = [(1, 10, 11, 12, 3), (1, 20, 3), (1, 7, 8, 9, 10, 11, 30, 31, 12, 3)]
DRAW = SamplingConfig(guidance=3.0, top_k=12)
GREEDY_SAMPLING = SamplingConfig(greedy=True)
GREEDY_GUIDED = SamplingConfig(greedy=True, guidance=3.0)
WILD = SamplingConfig(temperature=3.0, top_k=0, top_p=1.0)

CONFIGS = {
    "native": EngineConfig(),
    "packed": EngineConfig(decoder="packed"),
    "family": EngineConfig(decoder="family"),
    "few rows": EngineConfig(rows=3),
    "speculation": EngineConfig(window=4),
}


def engine_of(model: Any, vocabulary: Vocabulary, config: EngineConfig | None = None) -> Engine:
    return Engine(model, vocabulary, unconditional=UNCONDITIONAL, stop=[STOP], config=config)


@pytest.fixture(params=CONFIGS)
def engine(request: pytest.FixtureRequest, llama: Any, vocabulary: Vocabulary) -> Engine:
    return engine_of(llama, vocabulary, CONFIGS[request.param])


def picture(prompt: tuple[int, ...], seed: int = 0, **changes: Any) -> ImageRequest:
    fields = {"prompt": prompt, "grid": (2, 3), "sampling": DRAW, "seed": seed, **changes}
    return ImageRequest(**fields)


def text(prompt: tuple[int, ...], **changes: Any) -> TextRequest:
    fields = {"max_tokens": 12, "sampling": GREEDY_SAMPLING, "picture_sampling": DRAW, **changes}
    return TextRequest(prompt=prompt, **fields)


def padded(prompts: list[tuple[int, ...]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class Guided(LogitsProcessor):
    """Guidance within transformers' generate: the second half of the rows is unconditional."""

    def __init__(self, scale: float, part: slice) -> None:
        self.scale, self.part = scale, part

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        conditional, unconditional = scores[:, self.part].chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.part] = guided.repeat(2, 1)
        return masked


def test_greedy_text_equals_transformers_generate(
    model: Any, vocabulary: Vocabulary, kinds: list[Kind]
) -> None:
    expected = model.generate(
        **padded(PROMPTS),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[3, 4, 5, *range(40, vocabulary.size)],
    )[:, -12:]
    for kind in kinds:
        config = EngineConfig(decoder=kind)
        engine = Engine(model, vocabulary, unconditional=UNCONDITIONAL, stop=[], config=config)
        texts = engine.texts([text(prompt) for prompt in PROMPTS])
        assert [list(written.ids) for written in texts] == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_guided_pictures_equal_transformers_generate(
    model: Any, vocabulary: Vocabulary, scale: float, kinds: list[Kind]
) -> None:
    expected = model.generate(
        **padded([*PROMPTS, *[UNCONDITIONAL] * len(PROMPTS)]),
        max_new_tokens=12,
        do_sample=False,
        logits_processor=[Guided(scale, vocabulary.image_slice)],
    )[: len(PROMPTS), -12:]
    codes = vocabulary.to_codes(expected).view(-1, 3, 4)
    sampling = SamplingConfig(greedy=True, guidance=scale)
    for kind in kinds:
        engine = engine_of(model, vocabulary, EngineConfig(decoder=kind))
        drawn = engine.pictures([picture(p, grid=(3, 4), sampling=sampling) for p in PROMPTS])
        assert [picture.tolist() for picture in drawn] == codes.tolist()


def test_codes_lie_in_the_codebook_and_in_the_grid(engine: Engine) -> None:
    [codes] = engine.pictures([picture(PROMPTS[0], sampling=WILD)])
    assert codes.shape == (2, 3)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 24


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_a_seed_gives_the_same_picture_alone_and_in_any_slot(
    engine: Engine, llama: Any, vocabulary: Vocabulary, guidance: float
) -> None:
    sampling = SamplingConfig(guidance=guidance, temperature=2.0, top_k=0)
    requests = [picture(PROMPTS[number % 3], seed=number, sampling=sampling) for number in range(9)]
    plain = engine_of(llama, vocabulary)
    alone = [plain.pictures([request])[0].tolist() for request in requests]
    assert [codes.tolist() for codes in engine.pictures(requests)] == alone
    order = [6, 2, 0, 5, 1, 8, 3, 4, 7]
    shuffled = engine.pictures([requests[place] for place in order])
    assert [codes.tolist() for codes in shuffled] == [alone[place] for place in order]
    assert len({str(codes) for codes in alone}) == 9


def test_guidance_zero_ignores_the_prompt(engine: Engine) -> None:
    sampling = SamplingConfig(guidance=0.0, top_k=0)
    first, second = engine.pictures([picture(prompt, sampling=sampling) for prompt in PROMPTS[:2]])
    assert first.tolist() == second.tolist()


def mixture(count: int) -> list[ImageRequest | TextRequest]:
    """Requests of every kind, size and setting."""
    kinds: list[Any] = [
        lambda n: picture(PROMPTS[n % 3], seed=n, preview_rows=1),
        lambda n: text(PROMPTS[n % 2], seed=n, sampling=WILD, max_tokens=1 + n),
        lambda n: picture(PROMPTS[n % 3], seed=n, grid=(1, 5), sampling=WILD),
        lambda n: text(PROMPTS[n % 3], seed=n, sampling=WILD, grid=(2, 2), max_tokens=20),
        lambda n: picture(PROMPTS[n % 3], seed=n, sampling=GREEDY_GUIDED, grid=(4, 3)),
        lambda n: text(PROMPTS[n % 3]),
    ]
    return [kinds[number % len(kinds)](number) for number in range(count)]


def shown(steps: list[Any]) -> list[str]:
    return [f"{type(step).__name__} {step!r}" for step in steps]


def test_any_mix_in_one_batch_is_what_each_gets_alone_and_streamed(
    engine: Engine, llama: Any, vocabulary: Vocabulary
) -> None:
    requests = mixture(12)
    plain = engine_of(llama, vocabulary)
    alone = [shown(list(plain.stream(request))) for request in requests]
    together: dict[int, list[Any]] = {place: [] for place in range(len(requests))}
    for place, step in engine.answers(requests):
        together[place].append(step)
    assert [shown(steps) for steps in together.values()] == alone
    kinds = {type(step) for steps in together.values() for step in steps}
    assert kinds == {TextStep, ImageRows, ImageStep, End}


def test_requests_that_come_later_join_those_that_run(llama: Any, vocabulary: Vocabulary) -> None:
    requests = mixture(12)
    alone = [shown(list(engine_of(llama, vocabulary).stream(request))) for request in requests]
    engine = engine_of(llama, vocabulary, EngineConfig(rows=6))
    answers = []
    for request in requests:
        answers.append(engine.submit(request))
        engine.step()
    while engine.step():
        pass
    assert all(answer.done for answer in answers)
    assert [shown(list(answer.steps)) for answer in answers] == alone


def test_streams_that_are_read_by_turns_or_broken_off(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    request = text(PROMPTS[0], sampling=WILD, seed=1)
    expected = list(engine.stream(request))
    first, second = engine.stream(request), engine.stream(text(PROMPTS[2], sampling=WILD))
    next(second)
    assert next(first) == expected[0]
    second.close()
    assert [expected[0], *first] == expected
    assert not engine.step()


def test_threads_share_an_engine(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    requests = mixture(6)
    expected = [shown(list(engine.stream(request))) for request in requests]
    found: dict[int, list[str]] = {}

    def work(place: int) -> None:
        found[place] = shown(list(engine.stream(requests[place])))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(6)] == expected


def test_no_requests_give_nothing(engine: Engine) -> None:
    assert engine.pictures([]) == []
    assert engine.texts([]) == []
    assert not engine.step()


def test_progress_counts_codes(llama: Any, vocabulary: Vocabulary) -> None:
    seen: list[tuple[int, int]] = []
    engine = engine_of(llama, vocabulary, EngineConfig(rows=4))
    engine.pictures(
        [picture(prompt) for prompt in PROMPTS],
        progress=lambda done, total: seen.append((done, total)),
    )
    # Two guided pictures at a time.
    assert seen == [(done, 18) for done in (2, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18)]


def test_only_what_is_bad_fails(engine: Engine) -> None:
    long = (1,) * 60
    requests: list[Any] = [
        picture(PROMPTS[0], seed=3),
        picture((*long, 3)),
        picture(PROMPTS[0], sampling=SamplingConfig(top_k=25)),
        text((1,) * 64),
        text(PROMPTS[0], sampling=SamplingConfig(top_k=41)),
        text(PROMPTS[0]),
        picture(PROMPTS[0], grid=(0, 3)),
        picture(()),
    ]
    ends = {place: step for place, step in engine.answers(requests) if isinstance(step, End)}
    assert {place for place, end in ends.items() if end.error is None} == {0, 5}
    told = {place: str(end.error) for place, end in ends.items() if end.error is not None}
    assert told == {
        1: "prompt: 61 ids and 6 codes don't fit the model's context of 64 ids. "
        "Shorten the prompt.",
        2: "sampling.top_k: 25 is above the 24 codes of the codebook. "
        "Give an integer from 0 to 24 (0 is off).",
        3: "prompt: 64 ids and 1 token of text don't fit the model's context of 64 ids. "
        "Shorten the prompt.",
        4: "sampling.top_k: 41 is above the 40 ids of text. "
        "Give an integer from 0 to 40 (0 is off).",
        6: "grid: must be at least 1 x 1 (0 x 3).",
        7: "prompt: holds no id. Begin with at least one.",
    }
    for place in (1, 3, 7):
        with pytest.raises(DataError, match=r"^prompt: "):
            engine.submit(requests[place])
    with pytest.raises(DataError, match="61 ids and 6 codes"):
        engine.pictures([requests[0], requests[1]])


def test_a_prompt_may_fill_the_context(engine: Engine) -> None:
    fits = (1,) * 57 + (3,)
    assert engine.pictures([picture(fits)])[0].shape == (2, 3)
    [written] = engine.texts([text((1,) * 63, sampling=WILD)])
    assert (len(written.ids), written.finish) in ((1, "length"), (0, "stop"))


@pytest.mark.parametrize("bad", [0, -3])
def test_bad_numbers_are_errors(bad: int) -> None:
    with pytest.raises(ConfigError, match=rf"^max_tokens: must be at least 1 \({bad}\)"):
        text((1,), max_tokens=bad)
    with pytest.raises(ConfigError, match="rows: must be at least 2"):
        EngineConfig(rows=bad)
    with pytest.raises(ConfigError, match="seed: must be from 0"):
        picture(PROMPTS[0], seed=bad - 1)
    with pytest.raises(ConfigError, match="preview_rows: must be at least 0"):
        picture(PROMPTS[0], preview_rows=bad - 1)
    with pytest.raises(ConfigError, match="window: must be 0"):
        EngineConfig(window=bad or 1)


def test_a_model_that_cant_be_run_that_way_is_told_at_once(
    make: Any, vocabulary: Vocabulary
) -> None:
    for family, config, message in (
        ("gemma2", {"weights": "int8"}, r"weights: int8 is impossible.*\(native: the family"),
        ("llama", {"weights": "int8", "decoder": "family"}, "weights as they are, float32"),
        ("llama", {"weights": "int9"}, "weights: 'int9' is unknown.*'int8'"),
        ("llama", {"decoder": "pack"}, "decoder: 'pack' is unknown.*'packed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine_of(make(family), vocabulary, EngineConfig(**config))
    with pytest.raises(ConfigError, match="graphs: needs a CUDA device"):
        engine_of(make("llama"), vocabulary, EngineConfig(graphs=True))
    engine = engine_of(make("gemma2"), vocabulary, EngineConfig(weights="float32"))
    assert engine.pictures([picture(PROMPTS[0])])[0].shape == (2, 3)


@pytest.mark.parametrize("kind", ["native", "packed", "family"])
def test_broken_weights_are_told_and_the_engine_goes_on(
    make: Any, vocabulary: Vocabulary, kind: Kind
) -> None:
    model = make("llama")
    engine = engine_of(model, vocabulary, EngineConfig(decoder=kind))
    kept = engine.submit(text(PROMPTS[0]))
    while engine.step():
        pass
    head = model.lm_head.weight.data[50].clone()
    model.lm_head.weight.data[50] = torch.nan
    with pytest.raises(CheckpointError, match=r"scores are no numbers \(NaN\)"):
        engine.pictures([picture(PROMPTS[0], sampling=WILD)])
    assert kept.done
    model.lm_head.weight.data[50] = head
    if kind == "family":  # the others read weights once
        assert engine.pictures([picture(PROMPTS[0])])[0].shape == (2, 3)
    assert engine.texts([text(PROMPTS[0])])[0].ids


class Scripted:
    """A decoder that wants given ids as text, and whose rows can be looked into."""

    device = torch.device("cpu")
    exact = False

    def __init__(self, wanted: list[int]) -> None:
        self.wanted = list(wanted)
        self.rows: dict[int, dict[int, int]] = {}

    def reserve(self, rows: int, length: int) -> None:
        """Any room is there."""

    def forward(self, ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        for place, (row, start) in enumerate(zip(ids.tolist(), starts.tolist(), strict=True)):
            assert start + len(row) <= span
            held = self.rows.setdefault(first + place, {})
            held.update({start + index: token for index, token in enumerate(row)})
        return torch.zeros(*ids.shape, 1)

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        logits = torch.zeros(len(hidden), rows.stop - rows.start)
        if rows.start == 0:
            logits[:, self.wanted.pop(0)] = 50.0
        return logits

    def copy(self, source: int, targets: list[int], length: int) -> None:
        for target in targets:
            kept = {place: self.rows[source][place] for place in range(length)}
            self.rows.setdefault(target, {}).update(kept)

    def row(self, number: int) -> list[int]:
        """Ids of a row in order."""
        held = self.rows[number]
        return [held[place] for place in range(len(held))]


def scripted(llama: Any, vocabulary: Vocabulary, wanted: list[int]) -> tuple[Engine, Scripted]:
    engine = engine_of(llama, vocabulary)
    engine._decoder = decoder = Scripted(wanted)
    return engine, decoder


def test_text_and_pictures_alternate(llama: Any, vocabulary: Vocabulary) -> None:
    engine, decoder = scripted(llama, vocabulary, [8, 9, 3, 10, 3, 11, STOP])
    steps = list(engine.stream(text((1, 6), grid=(2, 2), seed=3)))
    assert [type(step) for step in steps] == [
        *(TextStep, TextStep, ImageStep, TextStep, ImageStep, TextStep, End)
    ]
    assert steps[-1] == End(finish="stop")
    first, second = (step.codes for step in steps if isinstance(step, ImageStep))
    assert first.shape == second.shape == (2, 2)
    drawn = [vocabulary.to_token_ids(codes.flatten()).tolist() for codes in (first, second)]
    whole = [1, 6, 8, 9, 3, *drawn[0], 4, 10, 3, *drawn[1], 4, 11]
    assert decoder.row(1)[: len(whole)] == whole
    # The other half began anew for the second picture; its last code is fed to nobody. While text
    # is written its row runs idle, over its first position.
    assert decoder.row(2)[1 : len(UNCONDITIONAL) + 3] == [*UNCONDITIONAL[1:], *drawn[1][:3]]


def test_a_picture_is_not_opened_where_it_does_not_fit_or_is_not_allowed(
    llama: Any, vocabulary: Vocabulary
) -> None:
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(engine.stream(text((1, 6), grid=None)))
    assert {type(step) for step in steps} == {TextStep, End}
    assert vocabulary.boi not in [step.id for step in steps if isinstance(step, TextStep)]
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(engine.stream(text((1,) * 54, grid=(2, 4))))
    assert {type(step) for step in steps} == {TextStep, End}
    assert len(steps) == 64 - 54 + 1
    # 53 ids, boi, 8 codes, eoi and one more id are 64: it just fits.
    engine, _ = scripted(llama, vocabulary, [3] * 12)
    steps = list(engine.stream(text((1,) * 53, grid=(2, 4))))
    assert [type(step) for step in steps] == [ImageStep, TextStep, End]


def test_limits_end_a_text_with_pictures(llama: Any, vocabulary: Vocabulary) -> None:
    engine, _ = scripted(llama, vocabulary, [8, 3, 9, 10, 11, 12])
    steps = list(engine.stream(text((1,), grid=(2, 2), max_tokens=4)))
    assert [type(step) for step in steps] == [TextStep, ImageStep, TextStep, TextStep, End]
    assert steps[-1] == End(finish="length")
    engine, _ = scripted(llama, vocabulary, [8, 3])
    steps = list(engine.stream(text((1,), grid=(2, 2), max_tokens=2)))
    assert [type(step) for step in steps] == [TextStep, ImageStep, End]


def test_previews_come_every_so_many_rows(llama: Any, vocabulary: Vocabulary) -> None:
    engine = engine_of(llama, vocabulary)
    request = picture(PROMPTS[0], grid=(5, 3), preview_rows=2)
    *previews, whole, end = list(engine.stream(request))
    assert isinstance(whole, ImageStep)
    assert end == End(finish="stop")
    assert [tuple(step.codes.shape) for step in previews] == [(2, 3), (4, 3)]
    for step in previews:
        assert torch.equal(step.codes, whole.codes[: len(step.codes)])


@pytest.mark.parametrize(
    ("kind", "reads", "rows"),
    [
        # The prompt and the unconditional one, but for their last ids.
        ("native", [(1, 4), (1, 2)], 10),
        # A round number of ids each, and of rows, two of which are idle.
        ("packed", [(1, 16), (1, 16)], 12),
    ],
)
def test_a_prompt_is_read_once_for_all_of_its_samples(
    llama: Any, vocabulary: Vocabulary, kind: Kind, reads: list[tuple[int, int]], rows: int
) -> None:
    engine = engine_of(llama, vocabulary, EngineConfig(decoder=kind))
    read: list[tuple[int, int]] = []
    forward = engine.decoder.forward

    def counted(ids: Tensor, starts: Tensor, first: int, span: int) -> Tensor:
        read.append(tuple(ids.shape))
        return forward(ids, starts, first, span)

    engine.decoder.forward = counted  # type: ignore[method-assign]
    engine.pictures([picture(PROMPTS[0], seed=seed) for seed in range(5)])
    assert read == [*reads, *[(rows, 1)] * 6]


def test_markers_are_never_written_as_text(engine: Engine) -> None:
    requests = [text(PROMPTS[0], sampling=WILD, seed=seed) for seed in range(20)]
    for written in engine.texts(requests):
        assert not {STOP, 3, 4, 5} & set(written.ids)
        assert max(written.ids, default=0) < 40


@pytest.mark.parametrize("kind", ["native", "packed", "family"])
def test_hundreds_of_requests_keep_no_memory(
    llama: Any, vocabulary: Vocabulary, kind: Kind
) -> None:
    engine = engine_of(llama, vocabulary, EngineConfig(rows=8, decoder=kind))

    def tensors() -> tuple[int, int]:
        gc.collect()
        held = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
        return len(held), sum(each.numel() for each in held)

    for _ in engine.answers(mixture(24)):
        pass
    before = tensors()
    for _ in engine.answers(mixture(24)):
        pass
    assert tensors() == before
