from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.images import ImageCodec
from liquidmm.generate.liquid import Liquid, load
from liquidmm.generate.outputs import ImagePiece, ImagePreview, TextPiece
from liquidmm.generate.requests import (
    GenerationRequest,
    ImageRequest,
    RequestBuilder,
    TextRequest,
    chat_request,
)
from liquidmm.generate.sampling import DEFAULT_CHAT_SAMPLING, GREEDY_SAMPLING, SamplingConfig

RED, BLUE = (Image.new("RGB", (40, 40), color) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def liquid(checkpoint_folder: Path) -> Liquid:
    return load(checkpoint_folder, "cpu", "float32", engine=EngineConfig(slots=8))


@pytest.fixture(scope="module")
def two_sizes(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Liquid:
    """The same model, trained on square and on wide images."""
    import shutil

    folder = tmp_path_factory.mktemp("sizes") / "checkpoint"
    shutil.copytree(checkpoint_folder, folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "sizes": [[16, 16], [24, 12]]}))
    return load(folder, "cpu", "float32")


def build(liquid: Liquid, request: GenerationRequest) -> Any:
    sequences = liquid.checkpoint.processor.sequences
    builder = RequestBuilder(sequences, ImageCodec(liquid.checkpoint), liquid.sampling)
    [built] = builder.build(request)
    return built


def one(liquid: Liquid, **fields: Any) -> Any:
    return build(liquid, GenerationRequest(**fields))


def test_image_of_prompt(liquid: Liquid) -> None:
    request = one(liquid, prompt="a cat", seed=4, guidance=2.0, top_k=3, preview_every=2)
    sequences = liquid.checkpoint.processor.sequences
    assert isinstance(request, ImageRequest)
    assert list(request.prompt) == sequences.text_to_image_prompt("a cat")
    assert (request.seed, request.grid, request.preview_every) == (4, (4, 4), 2)
    assert (request.sampling.guidance, request.sampling.top_k) == (2.0, 3)
    assert request.sampling.temperature == liquid.sampling.temperature


def test_image_of_images_and_of_conversation(liquid: Liquid) -> None:
    boi = liquid.checkpoint.vocabulary.boi
    turn = {"role": "user", "content": "<image><image>mix them"}
    asked = [*liquid.chat_prompt([turn], [RED, BLUE]), boi]
    assert list(one(liquid, prompt="mix them", images=(RED, BLUE)).prompt) == asked
    assert list(one(liquid, messages=(turn,), images=(RED, BLUE)).prompt) == asked


def test_caption_is_greedy_by_default(liquid: Liquid) -> None:
    request = one(liquid, mode="caption", images=(RED,), max_tokens=7)
    sequences = liquid.checkpoint.processor.sequences
    assert isinstance(request, TextRequest)
    assert list(request.prompt) == sequences.image_to_text_prompt(liquid.encode(RED))
    assert (request.sampling, request.grid, request.max_tokens) == (GREEDY_SAMPLING, None, 7)
    warm = one(liquid, mode="caption", images=(RED,), temperature=0.5)
    assert (warm.sampling.greedy, warm.sampling.temperature) == (False, 0.5)


def test_only_interleaved_text_has_grid(liquid: Liquid) -> None:
    turn = {"role": "user", "content": "<image>what is it?"}
    text = one(liquid, mode="text", prompt=" what is it? ", images=(RED,))
    both = one(liquid, mode="interleaved", messages=(turn,), images=(RED,), guidance=2.0)
    assert list(text.prompt) == list(both.prompt) == liquid.chat_prompt([turn], [RED])
    assert (text.grid, both.grid) == (None, (4, 4))
    assert text.sampling == both.sampling == DEFAULT_CHAT_SAMPLING
    assert both.image_sampling.guidance == 2.0


def test_size_hint_with_several_trained_sizes(two_sizes: Liquid) -> None:
    sequences = two_sizes.checkpoint.processor.sequences
    first, wide = one(two_sizes, prompt="a cat"), one(two_sizes, prompt="a cat", size=(24, 12))
    assert first.grid == (4, 4)
    assert wide.grid == (3, 6)
    assert list(first.prompt) == sequences.text_to_image_prompt("a cat", size=(16, 16))
    assert list(wide.prompt) == sequences.text_to_image_prompt("a cat", size=(24, 12))
    assert one(two_sizes, mode="interleaved", prompt="a cat", size=(24, 12)).grid == (3, 6)
    [[reply]] = two_sizes.generate([GenerationRequest(prompt="a cat", size=(24, 12))])
    assert reply.images[0].size == (24, 12)
    with pytest.raises(ConfigError, match=r"size: .* not trained on 8x8\. .*: 16x16, 24x12\."):
        one(two_sizes, prompt="a cat", size=(8, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "images"}, r"^mode: 'images' is unknown\. Did you mean 'image'\?"),
        ({"prompt": "a", "n": 0}, r"^n: .*at least 1, got 0"),
        ({"prompt": "a", "guidance": -1.0}, r"^guidance: .*at least 0, got -1\.0"),
        ({"prompt": "a", "top_k": 17}, r"^top_k: .*0 \(off\) to 16.*17"),
        ({"prompt": "a", "top_k": -1}, r"^top_k: .*at least 0, got -1"),
        ({"prompt": "a", "temperature": 0.0}, r"^temperature: .*above 0, got 0\.0"),
        ({"prompt": "a", "seed": -1}, r"^seed: .*from 0 .*got -1"),
        ({"prompt": "a", "preview_every": -1}, r"^preview_every: .*at least 0, got -1"),
        ({"prompt": "a", "size": (9, 9)}, r"^size: .* not trained on 9x9\. .* 16x16\."),
        ({"prompt": "a " * 300}, r"^prompt: \d+ tokens and 16 image tokens .* 256 tokens"),
        ({"prompt": " "}, r"^prompt: is empty"),
        ({"mode": "text"}, r"^prompt: is empty"),
        ({"mode": "text", "prompt": "a", "max_tokens": 0}, r"^max_tokens: .*at least 1, got 0"),
        ({"mode": "text", "prompt": "a", "top_k": 9999}, r"^top_k: .*text tokens, got 9999"),
        ({"mode": "text", "prompt": "a", "stop": ("",)}, r"^stop: .*not empty"),
        ({"mode": "text", "prompt": "a", "guidance": 2.0}, r"^guidance: has no effect in the mode"),
        ({"mode": "text", "prompt": "a", "size": (16, 16)}, r"^size: has no effect in the mode"),
        ({"mode": "text", "prompt": "a", "messages": ({"role": "user", "content": "b"},)},
         r"^prompt: .*messages"),
        ({"mode": "caption"}, r"^images: .*exactly one image.*0 images"),
        ({"mode": "caption", "images": (RED,), "prompt": "a"}, r"^images: .*caption"),
        ({"mode": "text", "prompt": "<image>", "images": ()}, "<image> in the messages.* 1 for 0"),
        ({"mode": "text", "prompt": "a", "images": ("none.png",)}, r"none\.png: no such file"),
    ],
)  # fmt: skip
def test_invalid_request_fails_alone(liquid: Liquid, fields: dict[str, Any], message: str) -> None:
    good = GenerationRequest(prompt="a cat", seed=3)
    first, [bad], last = liquid.generate([good, GenerationRequest(**fields), good])
    assert bad.finish == "error"
    assert not bad.images
    assert not bad.text
    with pytest.raises((ConfigError, DataError), match=message):
        raise bad.error
    assert "\n" not in str(bad.error)
    for [reply] in (first, last):
        assert reply.images[0].tobytes() == liquid.generate_image("a cat", seed=3).tobytes()
    with pytest.raises((ConfigError, DataError), match=message):
        list(liquid.stream(GenerationRequest(**fields)))


def test_samples_use_successive_seeds(liquid: Liquid) -> None:
    [replies] = liquid.generate([GenerationRequest(prompt="a cat", n=3, seed=5, temperature=2.0)])
    alone = [
        liquid.generate([GenerationRequest(prompt="a cat", seed=seed, temperature=2.0)])[0][0]
        for seed in (5, 6, 7)
    ]
    images = [reply.images[0].tobytes() for reply in replies]
    assert images == [reply.images[0].tobytes() for reply in alone]
    assert len(set(images)) == 3


def test_stream_of_several_samples_raises(liquid: Liquid) -> None:
    with pytest.raises(ConfigError, match=r"^n: expected 1 .*2"):
        list(liquid.stream(GenerationRequest(prompt="a", n=2)))


def test_missing_part_of_preview_is_gray(liquid: Liquid) -> None:
    *previews, image = list(liquid.stream(GenerationRequest(prompt="a cat", preview_every=1)))
    assert isinstance(image, ImagePiece)
    assert [piece.done for piece in previews if isinstance(piece, ImagePreview)] == [
        0.25,
        0.5,
        0.75,
    ]
    for piece in previews:
        assert isinstance(piece, ImagePreview)
        assert piece.image.size == image.image.size
        rows = round(16 * piece.done)
        lower = piece.image.crop((0, rows, 16, 16))
        assert lower.getcolors() == [(16 * (16 - rows), (128, 128, 128))]
        assert piece.image.crop((0, 0, 16, rows)).getcolors() != [(16 * rows, (128, 128, 128))]


def test_stop_string_ends_text(liquid: Liquid) -> None:
    request = GenerationRequest(
        mode="text", prompt="Hello", temperature=3.0, top_k=0, top_p=1.0, max_tokens=40
    )
    [[whole]] = liquid.generate([request])
    cut = whole.text[5:8]
    assert len(cut) == 3
    stopped = dataclasses.replace(request, stop=("never, ever", cut))
    [[reply], [other]] = liquid.generate([stopped, request])
    assert reply.finish == "stop"
    assert whole.text.startswith(reply.text)
    assert cut not in reply.text
    assert other == whole
    pieces = list(liquid.stream(stopped))
    assert "".join(p.text for p in pieces if isinstance(p, TextPiece)).strip() == reply.text
    assert not liquid.engine.step(), "a stopped request must not run on"


def test_score_of_answers(liquid: Liquid) -> None:
    turn = {"role": "user", "content": "<image>what is it?"}
    first, second = liquid.score([turn], ["a cat", "a house"], [RED])
    assert first.total < 0
    assert len(first.log_probs) == len(liquid.checkpoint.processor.sequences.encode("a cat"))
    [alone] = liquid.score([turn], ["a house"], [RED])
    assert alone.log_probs == pytest.approx(second.log_probs, abs=1e-5)
    assert liquid.score("Hello", [" there"])[0].total < 0
    with pytest.raises(DataError, match="images: .*conversation"):
        liquid.score("Hello", ["a"], [RED])
    with pytest.raises(DataError, match="an answer is empty"):
        liquid.score("Hello", [""])


def test_chat_request_sampling_applies_to_text_only(liquid: Liquid) -> None:
    sampling = SamplingConfig(guidance=2.0, temperature=0.5, top_k=3, top_p=0.8)
    turn = {"role": "user", "content": "Hello"}
    built = build(liquid, chat_request([turn], sampling=sampling, seed=4, max_tokens=9))
    assert (built.seed, built.max_tokens, built.grid) == (4, 9, (4, 4))
    assert dataclasses.replace(built.sampling, guidance=2.0) == sampling
    assert built.image_sampling == liquid.sampling
    assert build(liquid, chat_request([turn], mode="text")).grid is None
