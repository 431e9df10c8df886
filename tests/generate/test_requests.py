from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.jobs import DEFAULT_CHAT_SAMPLING, GREEDY_SAMPLING, Job
from liquidmm.generate.liquid import Liquid
from liquidmm.generate.load import load
from liquidmm.generate.reply import Picture, Preview, TextPiece
from liquidmm.generate.requests import ImageRequest, TextRequest

RED, BLUE = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def liquid(checkpoint_folder: Path) -> Liquid:
    return load(checkpoint_folder, "cpu", "float32", engine=EngineConfig(rows=8))


@pytest.fixture(scope="module")
def two_sizes(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Liquid:
    """The same trained on squares and on wide pictures."""
    import shutil

    folder = tmp_path_factory.mktemp("sizes") / "checkpoint"
    shutil.copytree(checkpoint_folder, folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "sizes": [[16, 16], [24, 12]]}))
    return load(folder, "cpu", "float32")


def one(liquid: Liquid, **fields: Any) -> Any:
    [request] = liquid._reader.read(Job(**fields))
    return request


def test_a_picture_of_words(liquid: Liquid) -> None:
    request = one(liquid, prompt="a cat", seed=4, guidance=2.0, top_k=3, preview_rows=2)
    sequences = liquid.checkpoint.processor.sequences
    assert isinstance(request, ImageRequest)
    assert list(request.prompt) == sequences.text_to_image_prompt("a cat")
    assert (request.seed, request.grid, request.preview_rows) == (4, (4, 4), 2)
    assert (request.sampling.guidance, request.sampling.top_k) == (2.0, 3)
    assert request.sampling.temperature == liquid.sampling.temperature


def test_a_picture_of_pictures_and_of_a_conversation(liquid: Liquid) -> None:
    boi = liquid.checkpoint.vocabulary.boi
    turn = {"role": "user", "content": "<image><image>mix them"}
    asked = [*liquid.chat_prompt([turn], [RED, BLUE]), boi]
    assert list(one(liquid, prompt="mix them", images=(RED, BLUE)).prompt) == asked
    assert list(one(liquid, messages=(turn,), images=(RED, BLUE)).prompt) == asked


def test_words_of_a_picture(liquid: Liquid) -> None:
    request = one(liquid, mode="caption", images=(RED,), max_tokens=7)
    sequences = liquid.checkpoint.processor.sequences
    assert isinstance(request, TextRequest)
    assert list(request.prompt) == sequences.image_to_text_prompt(liquid.encode(RED))
    assert (request.sampling, request.grid, request.max_tokens) == (GREEDY_SAMPLING, None, 7)
    warm = one(liquid, mode="caption", images=(RED,), temperature=0.5)
    assert (warm.sampling.greedy, warm.sampling.temperature) == (False, 0.5)


def test_text_and_interleaved_differ_in_what_may_be_drawn(liquid: Liquid) -> None:
    turn = {"role": "user", "content": "<image>what is it?"}
    text = one(liquid, mode="text", prompt=" what is it? ", images=(RED,))
    both = one(liquid, mode="interleaved", messages=(turn,), images=(RED,), guidance=2.0)
    assert list(text.prompt) == list(both.prompt) == liquid.chat_prompt([turn], [RED])
    assert (text.grid, both.grid) == (None, (4, 4))
    assert text.sampling == both.sampling == DEFAULT_CHAT_SAMPLING
    assert both.picture_sampling.guidance == 2.0


def test_a_size_is_hinted_where_several_were_trained(two_sizes: Liquid) -> None:
    sequences = two_sizes.checkpoint.processor.sequences
    first, wide = one(two_sizes, prompt="a cat"), one(two_sizes, prompt="a cat", size=(24, 12))
    assert first.grid == (4, 4)
    assert wide.grid == (3, 6)
    assert list(first.prompt) == sequences.text_to_image_prompt("a cat", size=(16, 16))
    assert list(wide.prompt) == sequences.text_to_image_prompt("a cat", size=(24, 12))
    assert one(two_sizes, mode="interleaved", prompt="a cat", size=(24, 12)).grid == (3, 6)
    [[reply]] = two_sizes.run([Job(prompt="a cat", size=(24, 12))])
    assert reply.images[0].size == (24, 12)
    with pytest.raises(ConfigError, match=r"size: .* not trained on 8x8\. .*: 16x16, 24x12\."):
        one(two_sizes, prompt="a cat", size=(8, 8))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "pictures"}, r"^mode: 'pictures' is unknown\. Did you mean 'picture'\?"),
        ({"prompt": "a", "n": 0}, r"^n: must be at least 1 \(0\)"),
        ({"prompt": "a", "guidance": -1.0}, r"^sampling\.guidance: -1\.0 .* at least 0"),
        ({"prompt": "a", "top_k": 17}, r"^sampling\.top_k: 17 is above the 16 codes .* 0 to 16"),
        ({"prompt": "a", "top_k": -1}, r"^sampling\.top_k: -1 is out of range"),
        ({"prompt": "a", "temperature": 0.0}, r"^sampling\.temperature: 0\.0 .* above 0"),
        ({"prompt": "a", "seed": -1}, r"^seed: must be from 0"),
        ({"prompt": "a", "preview_rows": -1}, r"^preview_rows: must be at least 0"),
        ({"prompt": "a", "size": (9, 9)}, r"^size: .* not trained on 9x9\. .* 16x16\."),
        ({"prompt": "a " * 300}, r"^prompt: \d+ ids and 16 codes don't fit .* 256 ids"),
        ({"prompt": " "}, r"^prompt: the text is empty"),
        ({"mode": "text"}, r"^prompt: is empty"),
        ({"mode": "text", "prompt": "a", "max_tokens": 0}, r"^max_tokens: must be at least 1"),
        ({"mode": "text", "prompt": "a", "top_k": 9999}, r"^sampling\.top_k: 9999 is above the"),
        ({"mode": "text", "prompt": "a", "stop": ("",)}, r"^stop: holds an empty string"),
        ({"mode": "text", "prompt": "a", "guidance": 2.0}, r"^guidance: has no effect in the mode"),
        ({"mode": "text", "prompt": "a", "size": (16, 16)}, r"^size: has no effect in the mode"),
        ({"mode": "text", "prompt": "a", "messages": ({"role": "user", "content": "b"},)},
         r"^prompt: stands beside messages"),
        ({"mode": "caption"}, r"^images: a caption is that of one picture alone \(0 given\)"),
        ({"mode": "caption", "images": (RED,), "prompt": "a"}, r"^images: a caption"),
        ({"mode": "text", "prompt": "<image>", "images": ()}, "1 <image> in the messages for 0"),
        ({"mode": "text", "prompt": "a", "images": ("none.png",)}, r"none\.png: no such file"),
    ],
)  # fmt: skip
def test_in_a_batch_only_what_is_wrong_fails(
    liquid: Liquid, fields: dict[str, Any], words: str
) -> None:
    good = Job(prompt="a cat", seed=3)
    first, [bad], last = liquid.run([good, Job(**fields), good])
    assert bad.finish == "error"
    assert not bad.images
    assert not bad.text
    with pytest.raises((ConfigError, DataError), match=words):
        raise bad.error
    assert "\n" not in str(bad.error)
    for [reply] in (first, last):
        assert reply.images[0].tobytes() == liquid.draw("a cat", seed=3).tobytes()
    with pytest.raises((ConfigError, DataError), match=words):
        list(liquid.stream_job(Job(**fields)))


def test_samples_have_seeds_of_their_own(liquid: Liquid) -> None:
    [replies] = liquid.run([Job(prompt="a cat", n=3, seed=5, temperature=2.0)])
    alone = [
        liquid.run([Job(prompt="a cat", seed=seed, temperature=2.0)])[0][0] for seed in (5, 6, 7)
    ]
    drawn = [reply.images[0].tobytes() for reply in replies]
    assert drawn == [reply.images[0].tobytes() for reply in alone]
    assert len(set(drawn)) == 3


def test_a_stream_has_one_answer(liquid: Liquid) -> None:
    with pytest.raises(ConfigError, match=r"^n: a stream has one answer \(2\)"):
        list(liquid.stream_job(Job(prompt="a", n=2)))


def test_previews_are_grey_where_nothing_is_drawn(liquid: Liquid) -> None:
    *previews, picture = list(liquid.stream_job(Job(prompt="a cat", preview_rows=1)))
    assert isinstance(picture, Picture)
    assert [piece.done for piece in previews if isinstance(piece, Preview)] == [0.25, 0.5, 0.75]
    for piece in previews:
        assert isinstance(piece, Preview)
        assert piece.image.size == picture.image.size
        rows = round(16 * piece.done)
        lower = piece.image.crop((0, rows, 16, 16))
        assert lower.getcolors() == [(16 * (16 - rows), (128, 128, 128))]
        assert piece.image.crop((0, 0, 16, rows)).getcolors() != [(16 * rows, (128, 128, 128))]


def test_stop_strings_end_a_text_and_are_left_out(liquid: Liquid) -> None:
    job = Job(mode="text", prompt="Hello", temperature=3.0, top_k=0, top_p=1.0, max_tokens=40)
    [[whole]] = liquid.run([job])
    cut = whole.text[5:8]
    assert len(cut) == 3
    stopped = Job(mode="text", prompt="Hello", temperature=3.0, top_k=0, top_p=1.0, max_tokens=40,
                  stop=("never, ever", cut))  # fmt: skip
    [[reply], [other]] = liquid.run([stopped, job])
    assert reply.finish == "stop"
    assert whole.text.startswith(reply.text)
    assert cut not in reply.text
    assert other == whole
    pieces = list(liquid.stream_job(stopped))
    assert "".join(p.text for p in pieces if isinstance(p, TextPiece)).strip() == reply.text
    assert not liquid.engine.step(), "what was stopped must not run on"


def test_answers_can_be_scored(liquid: Liquid) -> None:
    turn = {"role": "user", "content": "<image>what is it?"}
    first, second = liquid.score([turn], ["a cat", "a house"], [RED])
    assert first.total < 0
    assert len(first.tokens) == len(liquid.checkpoint.processor.sequences.encode("a cat"))
    [alone] = liquid.score([turn], ["a house"], [RED])
    assert alone.tokens == pytest.approx(second.tokens, abs=1e-5)
    assert liquid.score("Hello", [" there"])[0].total < 0
    with pytest.raises(DataError, match="images: stand in a conversation"):
        liquid.score("Hello", ["a"], [RED])
    with pytest.raises(DataError, match="an answer is empty"):
        liquid.score("Hello", [""])
