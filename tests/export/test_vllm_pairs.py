"""The sampling of guided pairs, against transformers and the engine of this package."""

import math

import pytest
import torch

import liquidmm
from liquidmm.errors import ConfigError
from liquidmm.export.vllm_backends import CompletionRequest
from liquidmm.export.vllm_pairs import (
    ARGUMENTS,
    CODES,
    GUIDANCE,
    PAIR,
    ROLE,
    SEED,
    ActiveRequest,
    GuidedRequest,
    PairSampler,
    match_pairs,
)
from liquidmm.generate.sampling import SamplingConfig

PROMPTS = ["a red apple", "two blue whales and a small green tree", "a house"]


def guided(pair="a", conditional=True, codes=16, seed=5, **sampling):
    return GuidedRequest(
        pair=pair,
        conditional=conditional,
        codes=codes,
        seed=seed,
        sampling=SamplingConfig(**{"guidance": 3.0, "top_k": 0, "top_p": 1.0} | sampling),
    )


def active(row, generated=0, **fields):
    return ActiveRequest(row=row, request=guided(**fields), generated=generated)


@pytest.fixture
def vocabulary(checkpoint):
    return checkpoint.vocabulary


@pytest.fixture
def logits(vocabulary):
    return torch.randn(5, vocabulary.size + 3, generator=torch.Generator().manual_seed(0))


def only_ids(logits, row):
    return (logits[row] > -torch.inf).nonzero()[:, 0].tolist()


def test_guided_request_read_from_settings(settings):
    read = GuidedRequest.from_settings(settings(top_k=-1, top_p=0.5))
    assert read == guided(top_p=0.5, temperature=1.0)
    assert GuidedRequest.from_settings(settings(temperature=0.0)).sampling.greedy
    assert not GuidedRequest.from_settings(settings(**{ROLE: "unconditional"})).conditional
    assert GuidedRequest.from_settings(settings(**{CODES: 16.0})).codes == 16  # from JSON
    assert GuidedRequest.from_settings(settings(**{SEED: 2**63 - 1})).seed == 2**63 - 1


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
def test_guided_request_none_for_other_requests(settings, extra):
    request = settings()
    request.extra_args = extra
    assert GuidedRequest.from_settings(request) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({GUIDANCE: None}, "liquid_guidance: is missing. Give all of liquid_pair, liquid_role"),
        ({PAIR: ""}, "liquid_pair: expected a name"),
        ({ROLE: "both"}, "liquid_role: expected conditional or unconditional, got 'both'"),
        ({GUIDANCE: -1}, "guidance: expected a number of at least 0, got -1"),
        ({GUIDANCE: "7"}, "liquid_guidance: expected a number, got '7'"),
        ({GUIDANCE: math.inf}, "guidance: expected a number of at least 0, got inf"),
        ({CODES: 0}, "liquid_codes: expected at least 1, got 0"),
        ({CODES: 2.5}, "liquid_codes: expected an integer, got 2.5"),
        ({CODES: math.nan}, "liquid_codes: expected an integer, got nan"),
        ({CODES: True}, "liquid_codes: expected a number, got True"),
        ({SEED: None}, "liquid_seed: is missing"),
        ({SEED: 1.5}, "liquid_seed: expected an integer, got 1.5"),
        ({SEED: -1}, "seed: expected an integer from 0 to 2**63 - 1, got -1"),
        ({"n": 2}, "n: expected 1 for a request of a pair, got 2"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and of at most 1, got 0.0"),
    ],
)
def test_guided_request_invalid_argument_raises(settings, changes, words):
    with pytest.raises(ConfigError) as caught:
        GuidedRequest.from_settings(settings(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sampler_pair_left_with_guided_code(logits, vocabulary):
    before = logits.clone()
    rows = [active(3, greedy=True), active(0, conditional=False, greedy=True)]
    assert PairSampler(vocabulary).apply(logits, rows) == []
    part = before[:, vocabulary.image_slice]
    expected = vocabulary.image_offset + int((part[0] + 3 * (part[3] - part[0])).argmax())
    assert only_ids(logits, 3) == only_ids(logits, 0) == [expected]
    assert torch.equal(logits[[1, 2, 4]], before[[1, 2, 4]])


def test_sampler_eoi_after_last_code(logits, vocabulary):
    rows = [active(1, generated=16), active(2, generated=16, conditional=False)]
    assert PairSampler(vocabulary).apply(logits, rows) == []
    assert only_ids(logits, 1) == only_ids(logits, 2) == [vocabulary.eoi]


def test_sampler_guidance_one_needs_no_partner(logits, vocabulary):
    before = logits.clone()
    rows = [
        active(1, guidance=1.0, greedy=True),
        active(2, pair="b", guidance=1.0, greedy=True),
        active(3, pair="b", guidance=1.0, greedy=True, conditional=False),
    ]
    assert PairSampler(vocabulary).apply(logits, rows) == []
    best = vocabulary.image_offset + before[:, vocabulary.image_slice].argmax(-1)
    assert [only_ids(logits, row) for row in (1, 2, 3)] == [[int(best[i])] for i in (1, 2, 2)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [active(1)],
            "not in the same step as the conditional one after 0 tokens",
        ),
        (
            [active(1, generated=7, conditional=False)],
            "not in the same step as the unconditional one after 7 tokens",
        ),
        (
            [active(1, guidance=1.0, conditional=False)],
            "its conditional request is not",
        ),
        (
            [active(1, generated=3), active(2, generated=4, conditional=False)],
            "have 3 and 4 tokens",
        ),
        (
            [active(1), active(2)],
            "2 requests have this name, expected one cond",
        ),
        ([active(1), active(2), active(0, conditional=False)], "3 requests have this name"),
        ([active(1), active(2, seed=6, conditional=False)], "differ in seed, codes, guidance or"),
        (
            [active(1), active(2, guidance=2.0, conditional=False)],
            "differ in seed, codes, guidance",
        ),
        ([active(1), active(2, codes=9, conditional=False)], "differ in seed, codes, guidance"),
    ],
)
def test_sampler_incomplete_pair_stopped(logits, vocabulary, rows, words):
    before = logits.clone()
    sampler = PairSampler(vocabulary)
    (message,) = sampler.apply(logits, [*rows, active(4, pair="z", guidance=1.0)])
    assert message.startswith("pair a: ")
    assert words in message
    for row in (one.row for one in rows):
        assert only_ids(logits, row) == [vocabulary.unconditional]
    assert vocabulary.is_image(torch.tensor(only_ids(logits, 4))).all()
    # A stopped pair stays stopped, and is reported once.
    again = before.clone()
    assert (
        sampler.apply(again, [active(1, generated=9), active(2, generated=9, conditional=False)])
        == []
    )
    assert only_ids(again, 1) == only_ids(again, 2) == [vocabulary.unconditional]


def test_sampler_nan_scores_stop_pair(logits, vocabulary):
    logits[2] = torch.nan
    rows = [active(1), active(2, conditional=False)]
    assert PairSampler(vocabulary).apply(logits, rows) == [
        "pair a: the model's scores are not finite."
    ]
    assert only_ids(logits, 1) == only_ids(logits, 2) == [vocabulary.unconditional]


def test_sampler_forgets_old_stopped_pairs(logits, vocabulary):
    sampler = PairSampler(vocabulary)
    for number in range(5000):
        sampler.apply(logits[:1, :], [active(0, pair=str(number))])
    assert len(sampler.stopped) == 4096
    assert match_pairs([active(0, pair="4999")], sampler.stopped) == ([], {})


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(guidance=3.0, greedy=True),
        SamplingConfig(guidance=4.0, temperature=1.3, top_k=9, top_p=0.9),
        SamplingConfig(guidance=1.0, temperature=0.8, top_k=0, top_p=1.0),
    ],
)
def test_sampler_codes_equal_liquid(checkpoint, vocabulary, engine, sampling):
    """The rows move in each step, and a text request is among them."""
    sequences, seeds = checkpoint.processor.sequences, [3, 4, 5]
    expected = liquidmm.Liquid(checkpoint).generate_codes(PROMPTS, seeds=seeds, sampling=sampling)
    text = CompletionRequest(
        prompt=tuple(sequences.text("a cup of tea")),
        max_tokens=20,
        sampling=SamplingConfig(greedy=True),
        stop=(),
    )
    pairs = [
        CompletionRequest(
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
    written, *answers = engine.complete([text, *pairs])
    assert engine.messages == []
    assert len(written) == 20
    for number, codes in enumerate(expected):
        ids = (*vocabulary.to_token_ids(codes).flatten().tolist(), vocabulary.eoi)
        assert answers[2 * number : 2 * number + 2] == [ids, ids]
