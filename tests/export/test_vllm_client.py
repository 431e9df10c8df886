import pytest
import torch

import liquidmm
from liquidmm.errors import CheckpointError, ConfigError, DataError, LiquidError
from liquidmm.export.vllm_client import VLLMClient, read_codes
from liquidmm.generate.sampling import SamplingConfig

PROMPTS = ["a red apple", "two blue whales and a small green tree"]


@pytest.fixture(scope="module")
def liquid(checkpoint):
    return liquidmm.Liquid(checkpoint)


@pytest.fixture
def client(checkpoint_folder, engine):
    return VLLMClient.load(checkpoint_folder, engine)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_client_codes_equal_liquid(client, engine, liquid, guidance):
    sampling = SamplingConfig(guidance=guidance, top_k=0)
    codes = client.generate_codes(PROMPTS, seeds=[7, 8], sampling=sampling)
    expected = liquid.generate_codes(PROMPTS, seeds=[7, 8], sampling=sampling)
    assert all(torch.equal(*pair) for pair in zip(codes, expected, strict=True))
    assert len(engine.requests) == (2 if guidance == 1 else 4)
    assert len({request.extra["liquid_pair"] for request in engine.requests}) == 2


def test_client_image_uses_checkpoint_sampling(client, liquid):
    image = client.generate_image(PROMPTS[0], size=(16, 16), seed=3)
    assert image.size == (16, 16)
    assert image.tobytes() == liquid.generate_image(PROMPTS[0], seed=3).tobytes()


def test_client_text_equals_liquid(client, engine, liquid):
    image = liquid.generate_image(PROMPTS[0])
    assert client.describe(image, max_tokens=9) == liquid.describe(image, max_tokens=9)
    question = "How many cats are there?"
    assert client.ask(image, question, max_tokens=9) == liquid.ask(image, question, max_tokens=9)
    messages = [{"role": "user", "content": "What is this? <image>"}]
    reply = client.chat(messages, [image], max_tokens=9)
    assert reply == liquid.chat(
        messages, [image], max_tokens=9, sampling=SamplingConfig(greedy=True)
    ).text.replace("<image>", "")
    markers = liquid.checkpoint.vocabulary
    expected = (markers.boi, markers.eoi, markers.unconditional)
    assert all(request.forbidden == expected for request in engine.requests)


def test_client_separated_pair_raises(client, engine):
    engine.lost = {1}
    with pytest.raises(LiquidError, match=r"image: .*0 of 16 codes.*PairScheduler"):
        client.generate_image(PROMPTS[0], sampling=SamplingConfig(guidance=3.0, top_k=0))
    assert "its unconditional request is not in the same step" in engine.messages[0]


def test_client_engine_without_plugin_raises(client, engine, monkeypatch):
    monkeypatch.setattr(engine.sampler, "apply", lambda logits, rows: [])
    with pytest.raises(LiquidError, match=r"image: .*16 codes.*Install liquidmm"):
        client.generate_image(PROMPTS[0], sampling=SamplingConfig(guidance=3.0, top_k=0))


@pytest.mark.parametrize(
    "change", [lambda ids: ids[:-1], lambda ids: [*ids[:3], 1, *ids[4:]], lambda ids: [*ids, 1]]
)
def test_read_codes_invalid_completion_raises(checkpoint, change):
    vocabulary = checkpoint.vocabulary
    ids = [*range(vocabulary.image_offset, vocabulary.image_offset + 16), vocabulary.eoi]
    whole = tuple(ids)
    assert read_codes([whole, whole], vocabulary, (2, 8)).tolist() == [
        list(range(8)),
        list(range(8, 16)),
    ]
    broken = tuple(change(ids))
    for pair in ([broken], [broken, broken], [whole, broken]):
        with pytest.raises(LiquidError, match=r"image: .*16 codes"):
            read_codes(pair, vocabulary, (4, 4))


def test_client_invalid_input_raises(client, base_folder, engine):
    with pytest.raises(DataError, match="prompt: is empty"):
        client.generate_image(" ")
    with pytest.raises(ConfigError, match="size: .*32x32"):
        client.generate_image("a cat", size=(32, 32))
    with pytest.raises(ConfigError, match=r"top_k: .*16.*4096"):
        client.generate_image("a cat", sampling=SamplingConfig())
    with pytest.raises(ConfigError, match="seeds: .*1.*2"):
        client.generate_codes(PROMPTS, seeds=[1])
    with pytest.raises(DataError, match=r"question: .*empty"):
        client.ask("missing.png", " ")
    with pytest.raises(CheckpointError, match=str(base_folder)):
        VLLMClient.load(base_folder, engine)
    assert engine.requests == []
