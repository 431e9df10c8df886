from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.generate.engine import (
    End,
    Engine,
    PictureRequest,
    PictureStep,
    TextRequest,
    TextStep,
)
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    text_size=30, image_offset=32, codebook_size=16, boi=3, eoi=4, unconditional=5
)
STOP = 2
CONTEXT = 40
PROMPTS = [(1, 10, 11, 12, 3), (1, 20, 3), (1, 7, 8, 9, 10, 11, 3)]
DRAW = SamplingConfig(guidance=3.0)
GREEDY = SamplingConfig(greedy=True)
WILD = SamplingConfig(temperature=3.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    built = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return built


@pytest.fixture
def engine(model: Any) -> Engine:
    return Engine(model, VOCABULARY, unconditional=[1, 5, 3], stop=[STOP])


def picture(prompt: tuple[int, ...], seed: int = 0, **changes: Any) -> PictureRequest:
    return PictureRequest(
        **{"prompt": prompt, "grid": (2, 3), "sampling": DRAW, "seed": seed, **changes}
    )


def text(prompt: tuple[int, ...], **changes: Any) -> TextRequest:
    return TextRequest(
        **{
            "prompt": prompt,
            "max_tokens": 12,
            "sampling": GREEDY,
            "picture_sampling": DRAW,
            **changes,
        }
    )


def test_codes_lie_in_the_codebook_and_in_the_grid(engine: Engine) -> None:
    [codes] = engine.pictures([picture(PROMPTS[0], sampling=WILD)])
    assert codes.shape == (2, 3)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 16


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_a_seed_gives_the_same_picture_alone_and_in_any_slot(
    engine: Engine, guidance: float
) -> None:
    sampling = SamplingConfig(guidance=guidance, temperature=2.0)
    requests = [picture(PROMPTS[number % 3], seed=number, sampling=sampling) for number in range(7)]
    alone = [engine.pictures([request])[0].tolist() for request in requests]
    assert [codes.tolist() for codes in engine.pictures(requests)] == alone
    order = [6, 2, 0, 5, 1, 3, 4]
    shuffled = engine.pictures([requests[place] for place in order], batch_size=3)
    assert [codes.tolist() for codes in shuffled] == [alone[place] for place in order]


def test_another_seed_gives_another_picture(engine: Engine) -> None:
    first, second = engine.pictures(
        [picture(PROMPTS[0], seed=seed, sampling=WILD) for seed in (0, 1)]
    )
    assert first.tolist() != second.tolist()


def test_guidance_zero_ignores_the_prompt(engine: Engine) -> None:
    sampling = SamplingConfig(guidance=0.0)
    first, second = engine.pictures([picture(prompt, sampling=sampling) for prompt in PROMPTS[:2]])
    assert first.tolist() == second.tolist()


def test_requests_of_different_kind_are_answered_in_order(engine: Engine) -> None:
    requests = [
        picture(PROMPTS[0]),
        picture(PROMPTS[1], grid=(1, 4)),
        picture(PROMPTS[2], sampling=SamplingConfig(guidance=1.0)),
        picture(PROMPTS[1]),
    ]
    expected = [engine.pictures([request])[0].tolist() for request in requests]
    assert [codes.tolist() for codes in engine.pictures(requests)] == expected
    assert [len(codes) for codes in expected] == [2, 1, 2, 2]


def test_no_requests_give_nothing(engine: Engine) -> None:
    assert engine.pictures([]) == []
    assert engine.texts([]) == []


def test_progress_counts_codes(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    engine.pictures(
        [picture(prompt) for prompt in PROMPTS],
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [
        (2, 18), (4, 18), (6, 18), (8, 18), (10, 18), (12, 18),
        (13, 18), (14, 18), (15, 18), (16, 18), (17, 18), (18, 18),
    ]  # fmt: skip


def test_a_prompt_without_room_is_told_with_both_numbers(engine: Engine) -> None:
    fits = (1,) * (CONTEXT - 7) + (3,)
    assert engine.pictures([picture(fits)])[0].shape == (2, 3)
    with pytest.raises(DataError, match=r"35 ids and 6 codes don't fit .* 40 ids\. Shorten"):
        engine.pictures([picture(PROMPTS[0]), picture((1, *fits))])
    with pytest.raises(DataError, match="40 ids and 1 token"):
        engine.texts([text((1,) * CONTEXT)])
    with pytest.raises(DataError, match="40 ids and 1 token"):
        list(engine.stream(text((1,) * CONTEXT)))


@pytest.mark.parametrize("bad", [0, -3])
def test_bad_numbers_are_errors(engine: Engine, bad: int) -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        text((1,), max_tokens=bad)
    with pytest.raises(ConfigError, match="batch_size"):
        engine.pictures([picture(PROMPTS[0])], batch_size=bad)
    with pytest.raises(LiquidError, match="seed"):
        engine.pictures([picture(PROMPTS[0], seed=-1)])


def test_text_in_a_batch_equals_text_alone_and_streamed(engine: Engine) -> None:
    requests = [
        text(PROMPTS[0], sampling=WILD, seed=4),
        text(PROMPTS[1]),
        text(PROMPTS[2], sampling=WILD, seed=5, max_tokens=3),
        text(PROMPTS[0][:2], sampling=WILD, seed=6),
    ]
    together = engine.texts(requests)
    for request, batched in zip(requests, together, strict=True):
        [alone] = engine.texts([request])
        *steps, end = engine.stream(request)
        assert alone == batched
        assert alone.ids == tuple(step.id for step in steps if isinstance(step, TextStep))
        assert end == End(finish=alone.finish)
    assert len(together[2].ids) == 3


def test_text_equals_transformers_generate(engine: Engine, model: Any) -> None:
    expected = model.generate(
        torch.tensor([PROMPTS[0]]),
        attention_mask=torch.ones(1, len(PROMPTS[0]), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=0,
        suppress_tokens=[3, 4, 5, *range(30, VOCABULARY.size)],
    )[0, len(PROMPTS[0]) :].tolist()
    [written] = engine.texts([text(PROMPTS[0])])
    assert list(written.ids) == [token for token in expected if token != STOP]


def scripted(engine: Engine, monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> list[list[int]]:
    """Make the text head want these ids in turn; returns the prompts it was given."""
    prompts: list[list[int]] = []
    wanted = iter(ids)

    def fake(model: Any, rows: Any, pick: Any, *, steps: int, **_: Any) -> Any:
        prompts.append(list(rows[0]))
        for _ in range(steps):
            logits = torch.zeros(1, VOCABULARY.text_size)
            logits[0, next(wanted)] = 50.0
            yield pick(logits, None)

    real = engine._draw_codes
    from liquidmm.generate import engine as module

    decode = module.decode

    def draw(*args: Any) -> Any:
        monkeypatch.setattr(module, "decode", decode)
        drawn = list(real(*args))
        monkeypatch.setattr(module, "decode", fake)
        return drawn

    monkeypatch.setattr(module, "decode", fake)
    monkeypatch.setattr(engine, "_draw_codes", draw)
    return prompts


def test_text_and_pictures_alternate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = scripted(engine, monkeypatch, [8, 9, 3, 10, 3, 11, STOP])
    steps = list(engine.stream(text((1, 6), grid=(2, 2), seed=3)))
    assert [type(step) for step in steps] == [
        *(TextStep, TextStep, PictureStep, TextStep, PictureStep, TextStep, End)
    ]
    assert steps[-1] == End(finish="stop")
    first, second = (step.codes for step in steps if isinstance(step, PictureStep))
    assert first.shape == second.shape == (2, 2)
    after_first = [1, 6, 8, 9, 3, *(first.flatten() + 32).tolist(), 4]
    after_second = [*after_first, 10, 3, *(second.flatten() + 32).tolist(), 4]
    assert prompts == [[1, 6], after_first, after_second]


def test_a_picture_is_not_opened_where_it_does_not_fit_or_is_not_allowed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(engine, monkeypatch, [3] * 12)
    steps = list(engine.stream(text((1, 6), grid=None)))
    assert {type(step) for step in steps} == {TextStep, End}
    assert VOCABULARY.boi not in [step.id for step in steps if isinstance(step, TextStep)]
    scripted(engine, monkeypatch, [3] * 12)
    steps = list(engine.stream(text((1,) * 30, grid=(2, 4))))
    assert {type(step) for step in steps} == {TextStep, End}
    assert len(steps) == CONTEXT - 30 + 1


def test_limits_end_a_text_with_pictures(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(engine, monkeypatch, [8, 3, 9, 10, 11, 12])
    steps = list(engine.stream(text((1,), grid=(2, 2), max_tokens=4)))
    assert [type(step) for step in steps] == [TextStep, PictureStep, TextStep, TextStep, End]
    assert steps[-1] == End(finish="length")


def test_markers_are_never_written_as_text(engine: Engine) -> None:
    for seed in range(20):
        [written] = engine.texts([text(PROMPTS[0], sampling=WILD, seed=seed)])
        assert not {STOP, 3, 4, 5} & set(written.ids)
        assert max(written.ids, default=0) < VOCABULARY.text_size
