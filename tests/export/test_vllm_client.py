import pytest
import torch

import liquidmm
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError
from liquidmm.export.vllm_backends import Answer
from liquidmm.export.vllm_client import VLLMClient, read_picture
from liquidmm.generate.sampling import SamplingConfig

PROMPTS = ["a red apple", "two blue whales and a small green tree"]


@pytest.fixture(scope="module")
def liquid(checkpoint):
    return liquidmm.Liquid.from_checkpoint(checkpoint)


@pytest.fixture
def client(checkpoint_folder, engine):
    return VLLMClient.load(checkpoint_folder, engine)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_equal_those_of_liquid(client, engine, liquid, guidance):
    sampling = SamplingConfig(guidance=guidance, top_k=0)
    drawn = client.generate_codes(PROMPTS, seeds=[7, 8], sampling=sampling)
    expected = liquid.generate_codes(PROMPTS, seeds=[7, 8], sampling=sampling)
    assert all(torch.equal(*pair) for pair in zip(drawn, expected, strict=True))
    assert len(engine.requests) == (2 if guidance == 1 else 4)
    assert len({request.extra["liquid_pair"] for request in engine.requests}) == 2


def test_a_picture_is_drawn_with_the_checkpoint_s_own_sampling(client, liquid):
    picture = client.draw(PROMPTS[0], size=(16, 16), seed=3)
    assert picture.size == (16, 16)
    assert picture.tobytes() == liquid.draw(PROMPTS[0], seed=3).tobytes()


def test_words_equal_those_of_liquid(client, engine, liquid):
    picture = liquid.draw(PROMPTS[0])
    assert client.describe(picture, max_tokens=9) == liquid.describe(picture, max_tokens=9)
    question = "How many cats are there?"
    assert client.ask(picture, question, max_tokens=9) == liquid.ask(
        picture, question, max_tokens=9
    )
    messages = [{"role": "user", "content": "What is this? <image>"}]
    reply = client.chat(messages, [picture], max_tokens=9)
    assert reply == liquid.chat(
        messages, [picture], max_tokens=9, sampling=SamplingConfig(greedy=True)
    ).text.replace("<image>", "")
    markers = liquid.checkpoint.vocabulary
    expected = (markers.boi, markers.eoi, markers.unconditional)
    assert all(request.forbidden == expected for request in engine.requests)


def test_a_lost_half_is_an_error_and_no_picture(client, engine):
    engine.lost = {1}
    with pytest.raises(LiquidError, match="picture: stopped after 0 of 16 codes, vLLM ran its"):
        client.draw(PROMPTS[0], sampling=SamplingConfig(guidance=3.0, top_k=0))
    assert "its unconditional half is not beside the conditional one" in engine.messages[0]


def test_an_engine_without_the_plugin_is_an_error(client, engine, monkeypatch):
    monkeypatch.setattr(engine.guide, "apply", lambda logits, rows: [])
    with pytest.raises(LiquidError, match="no picture of 16 codes. Install liquidmm beside vLLM"):
        client.draw(PROMPTS[0], sampling=SamplingConfig(guidance=3.0, top_k=0))


@pytest.mark.parametrize(
    "change", [lambda ids: ids[:-1], lambda ids: [*ids[:3], 1, *ids[4:]], lambda ids: [*ids, 1]]
)
def test_ids_that_are_no_picture(checkpoint, change):
    vocabulary = checkpoint.vocabulary
    ids = [*range(vocabulary.image_offset, vocabulary.image_offset + 16), vocabulary.eoi]
    whole = Answer(ids=tuple(ids))
    assert read_picture([whole, whole], vocabulary, (2, 8)).tolist() == [
        list(range(8)),
        list(range(8, 16)),
    ]
    broken = Answer(ids=tuple(change(ids)))
    for halves in ([broken], [broken, broken], [whole, broken]):
        with pytest.raises(LiquidError, match="ids are no picture of 16 codes"):
            read_picture(halves, vocabulary, (4, 4))


def test_bad_input(client, base_folder, engine):
    with pytest.raises(DataError, match="prompt: is empty"):
        client.draw(" ")
    with pytest.raises(ConfigError, match="size: this checkpoint was not trained on 32x32"):
        client.draw("a cat", size=(32, 32))
    with pytest.raises(ConfigError, match=r"top_k: 4096 is above the 16 codes of the codebook"):
        client.draw("a cat", sampling=SamplingConfig())
    with pytest.raises(ConfigError, match="seeds: 1 for 2 prompts"):
        client.generate_codes(PROMPTS, seeds=[1])
    with pytest.raises(DataError, match="question: is empty"):
        client.ask("missing.png", " ")
    with pytest.raises(CheckpointError, match="is a language model without image codes"):
        VLLMClient.load(base_folder, engine)
    assert engine.requests == []
