"""The pure part of the plugin, against transformers and against the engine of this package."""

import math

import pytest
import torch

import liquidmm
from liquidmm.errors import ConfigError
from liquidmm.export.pairs import (
    ARGUMENTS,
    CODES,
    GUIDANCE,
    PAIR,
    ROLE,
    SEED,
    Half,
    PairGuide,
    Row,
    join,
)
from liquidmm.export.vllm_backends import Completion
from liquidmm.generate.sampling import SamplingConfig

PROMPTS = ["a red apple", "two blue whales and a small green tree", "a house"]


def half(pair="a", conditional=True, codes=16, seed=5, **sampling):
    return Half(
        pair=pair,
        conditional=conditional,
        codes=codes,
        seed=seed,
        sampling=SamplingConfig(**{"guidance": 3.0, "top_k": 0, "top_p": 1.0} | sampling),
    )


def row(place, drawn=0, **fields):
    return Row(place=place, half=half(**fields), drawn=drawn)


@pytest.fixture
def vocabulary(checkpoint):
    return checkpoint.vocabulary


@pytest.fixture
def logits(vocabulary):
    return torch.randn(5, vocabulary.size + 3, generator=torch.Generator().manual_seed(0))


def only_ids(logits, place):
    return (logits[place] > -torch.inf).nonzero()[:, 0].tolist()


def test_a_request_is_read(settings):
    read = Half.of(settings(top_k=-1, top_p=0.5))
    assert read == half(top_p=0.5, temperature=1.0)
    assert Half.of(settings(temperature=0.0)).sampling.greedy
    assert not Half.of(settings(**{ROLE: "unconditional"})).conditional
    assert Half.of(settings(**{CODES: 16.0})).codes == 16  # JSON may make a float of it
    assert Half.of(settings(**{SEED: 2**63 - 1})).seed == 2**63 - 1


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
def test_other_requests_are_none(settings, extra):
    request = settings()
    request.extra_args = extra
    assert Half.of(request) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({GUIDANCE: None}, "liquid_guidance: is missing. Give all of liquid_pair, liquid_role"),
        ({PAIR: ""}, "liquid_pair: is empty"),
        ({ROLE: "both"}, "liquid_role: is 'both'. Give one of: conditional, unconditional"),
        ({GUIDANCE: -1}, "sampling.guidance: -1 is out of range"),
        ({GUIDANCE: "7"}, "liquid_guidance: is '7'. Give a number"),
        ({GUIDANCE: math.inf}, "sampling.guidance: inf is out of range"),
        ({CODES: 0}, "liquid_codes: must be at least 1 (0)"),
        ({CODES: 2.5}, "liquid_codes: is 2.5. Give an integer"),
        ({CODES: math.nan}, "liquid_codes: is nan. Give an integer"),
        ({CODES: True}, "liquid_codes: is True. Give a number"),
        ({SEED: None}, "liquid_seed: is missing"),
        ({SEED: 1.5}, "liquid_seed: is 1.5. Give an integer"),
        ({SEED: -1}, "seed: must be from 0 to 2**63 - 1"),
        ({"n": 2}, "n: must be 1 for half a picture (2)"),
        ({"top_p": 0.0}, "sampling.top_p: 0.0 is out of range"),
    ],
)
def test_bad_arguments(settings, changes, words):
    with pytest.raises(ConfigError) as caught:
        Half.of(settings(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_rows_get_the_guided_id_and_no_other(logits, vocabulary):
    before = logits.clone()
    rows = [row(3, greedy=True), row(0, conditional=False, greedy=True)]
    assert PairGuide(vocabulary).apply(logits, rows) == []
    part = before[:, vocabulary.image_slice]
    expected = vocabulary.image_offset + int((part[0] + 3 * (part[3] - part[0])).argmax())
    assert only_ids(logits, 3) == only_ids(logits, 0) == [expected]
    assert torch.equal(logits[[1, 2, 4]], before[[1, 2, 4]])


def test_what_follows_the_last_code_is_eoi(logits, vocabulary):
    rows = [row(1, drawn=16), row(2, drawn=16, conditional=False)]
    assert PairGuide(vocabulary).apply(logits, rows) == []
    assert only_ids(logits, 1) == only_ids(logits, 2) == [vocabulary.eoi]


def test_a_guidance_of_one_needs_no_other_half(logits, vocabulary):
    before = logits.clone()
    rows = [
        row(1, guidance=1.0, greedy=True),
        row(2, pair="b", guidance=1.0, greedy=True),
        row(3, pair="b", guidance=1.0, greedy=True, conditional=False),
    ]
    assert PairGuide(vocabulary).apply(logits, rows) == []
    best = vocabulary.image_offset + before[:, vocabulary.image_slice].argmax(-1)
    assert [only_ids(logits, place) for place in (1, 2, 3)] == [[int(best[i])] for i in (1, 2, 2)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1)], "its unconditional half is not beside the conditional one after 0 ids"),
        (
            [row(1, drawn=7, conditional=False)],
            "its conditional half is not beside the unconditional one after 7 ids",
        ),
        ([row(1, guidance=1.0, conditional=False)], "its conditional half is not beside"),
        ([row(1, drawn=3), row(2, drawn=4, conditional=False)], "are 3 and 4 ids long"),
        ([row(1), row(2)], "2 rows have this name, it needs one conditional and one uncond"),
        ([row(1), row(2), row(0, conditional=False)], "3 rows have this name"),
        ([row(1), row(2, seed=6, conditional=False)], "differ in seed, codes, guidance or"),
        ([row(1), row(2, guidance=2.0, conditional=False)], "differ in seed, codes, guidance"),
        ([row(1), row(2, codes=9, conditional=False)], "differ in seed, codes, guidance"),
    ],
)
def test_what_is_no_pair_is_stopped_and_never_drawn(logits, vocabulary, rows, words):
    before = logits.clone()
    guide = PairGuide(vocabulary)
    (message,) = guide.apply(logits, [*rows, row(4, pair="z", guidance=1.0)])
    assert message.startswith("pair a: ")
    assert words in message
    for place in (part.place for part in rows):
        assert only_ids(logits, place) == [vocabulary.unconditional]
    assert vocabulary.is_image(torch.tensor(only_ids(logits, 4))).all()
    # Once apart, always apart, and told once.
    again = before.clone()
    assert guide.apply(again, [row(1, drawn=9), row(2, drawn=9, conditional=False)]) == []
    assert only_ids(again, 1) == only_ids(again, 2) == [vocabulary.unconditional]


def test_broken_scores_stop_the_pair_and_not_the_engine(logits, vocabulary):
    logits[2] = torch.nan
    rows = [row(1), row(2, conditional=False)]
    assert PairGuide(vocabulary).apply(logits, rows) == [
        "pair a: the model's scores are no numbers."
    ]
    assert only_ids(logits, 1) == only_ids(logits, 2) == [vocabulary.unconditional]


def test_what_came_apart_is_not_kept_for_ever(logits, vocabulary):
    guide = PairGuide(vocabulary)
    for number in range(5000):
        guide.apply(logits[:1, :], [row(0, pair=str(number))])
    assert len(guide._apart) == 4096
    assert join([row(0, pair="4999")], guide._apart) == ([], {})


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(guidance=3.0, greedy=True),
        SamplingConfig(guidance=4.0, temperature=1.3, top_k=9, top_p=0.9),
        SamplingConfig(guidance=1.0, temperature=0.8, top_k=0, top_p=1.0),
    ],
)
def test_pictures_equal_those_of_this_package(checkpoint, vocabulary, engine, sampling):
    """Rows are in another place in each step, and a text request is among them."""
    sequences, seeds = checkpoint.processor.sequences, [3, 4, 5]
    expected = liquidmm.Liquid.from_checkpoint(checkpoint).generate_codes(
        PROMPTS, seeds=seeds, sampling=sampling
    )
    text = Completion(
        prompt=tuple(sequences.text("a cup of tea")),
        max_tokens=20,
        sampling=SamplingConfig(greedy=True),
        stop=(),
    )
    halves = [
        Completion(
            prompt=tuple(prompt),
            max_tokens=17,
            sampling=sampling,
            stop=(vocabulary.eoi,),
            extra=dict(zip(ARGUMENTS, (name, role, seed, sampling.guidance, 16), strict=True)),
        )
        for name, seed in zip(PROMPTS, seeds, strict=True)
        for role, prompt in [
            ("unconditional", sequences.unconditional_prompt()),
            ("conditional", sequences.text_to_image_prompt(name)),
        ]
    ]
    written, *answers = engine.complete([text, *halves])
    assert engine.messages == []
    assert len(written.ids) == 20
    for number, codes in enumerate(expected):
        ids = (*vocabulary.to_token_ids(codes).flatten().tolist(), vocabulary.eoi)
        assert [answer.ids for answer in answers[2 * number : 2 * number + 2]] == [ids, ids]
