from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liquidmm
from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.generate.conversation import Conversation
from liquidmm.generate.liquid import Liquid
from liquidmm.generate.load import load
from liquidmm.generate.reply import Picture, TextPiece
from liquidmm.generate.requests import End, ImageStep, TextStep
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.words import Characters, words
from liquidmm.model.checkpoint import Checkpoint

WILD = SamplingConfig(temperature=2.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def liquid(checkpoint_folder: Path) -> Liquid:
    return load(checkpoint_folder, "cpu", "float32")


def pixels(image: Image.Image) -> list[int]:
    return np.asarray(image).flatten().tolist()


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_the_public_names_are_these(checkpoint_folder: Path) -> None:
    assert liquidmm.Liquid is Liquid
    assert liquidmm.load is load
    assert liquidmm.SamplingConfig is SamplingConfig


def test_a_checkpoint_draws_with_its_own_defaults_or_the_release(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # The release draws from the likelier half of its codes; here there are 16.
    assert Liquid.from_checkpoint(checkpoint).sampling == SamplingConfig(top_k=8)
    processor = type(checkpoint.processor)(
        checkpoint.processor.tokenizer,
        checkpoint.vocabulary,
        checkpoint.processor.sizes,
        sampling={"guidance": 3.0, "top_k": 64},
    )
    folder = dataclasses.replace(checkpoint, processor=processor).save(tmp_path / "own")
    assert load(folder, "cpu").sampling == SamplingConfig(guidance=3.0, top_k=64)
    path = folder / "processor_config.json"
    path.write_text(path.read_text().replace("guidance", "guidence"))
    with pytest.raises(ConfigError, match=r"sampling.*guidence.*Did you mean 'guidance'"):
        load(folder, "cpu")


def test_a_picture_has_the_trained_size_and_follows_its_seed(liquid: Liquid) -> None:
    first = liquid.draw("a red apple", seed=1, sampling=WILD)
    assert first.size == liquid.sizes[0]
    assert first.mode == "RGB"
    assert pixels(first) == pixels(liquid.draw("a red apple", seed=1, sampling=WILD))
    others = [pixels(liquid.draw("a red apple", seed=seed, sampling=WILD)) for seed in (2, 3)]
    assert pixels(first) not in others


def test_many_pictures_equal_single_ones(liquid: Liquid) -> None:
    prompts = ["a red apple", "a house with a long and winding description", "b"]
    many = liquid.generate_images(prompts)
    for seed, (prompt, image) in enumerate(zip(prompts, many, strict=True)):
        assert pixels(image) == pixels(liquid.draw(prompt, seed=seed))
    assert liquid.generate_images([]) == []


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_an_error(liquid: Liquid, prompt: str) -> None:
    with pytest.raises(DataError, match="prompt: .*empty"):
        liquid.draw(prompt)


def test_a_prompt_longer_than_the_context_is_told_with_both_numbers(liquid: Liquid) -> None:
    context = liquid.engine.context
    with pytest.raises(DataError, match=rf"prompt: \d{{3,}} ids and \d+ codes .* {context} ids"):
        liquid.draw("apple " * context)
    with pytest.raises(DataError, match=rf"prompt: \d{{3,}} ids and 1 token .* {context} ids"):
        liquid.chat([user("apple " * context)])


def test_an_untrained_size_lists_the_trained_ones(liquid: Liquid) -> None:
    width, height = liquid.sizes[0]
    with pytest.raises(ConfigError, match=rf"size: .* 48x48\. Choose one of: {width}x{height}"):
        liquid.draw("an apple", size=(48, 48))
    assert liquid.draw("an apple", size=(width, height)).size == (width, height)


def test_seeds_and_prompts_must_agree(liquid: Liquid) -> None:
    with pytest.raises(ConfigError, match="seeds: 1 for 2 prompts"):
        liquid.generate_images(["a", "b"], seeds=[0])


def test_encode_and_decode_fit_each_other(liquid: Liquid, tmp_path: Path) -> None:
    image = Image.new("RGB", (50, 70), "red")
    codes = liquid.encode(image)
    height, width = codes.shape
    factor = liquid.checkpoint.image_tokenizer.downsample_factor
    assert (width * factor, height * factor) == liquid.sizes[0]
    assert liquid.decode(codes).size == liquid.sizes[0]
    assert liquid.encode(codes) is codes
    image.save(tmp_path / "red.png")
    assert torch.equal(liquid.encode(tmp_path / "red.png"), codes)
    assert torch.equal(liquid.encode(str(tmp_path / "red.png")), codes)


def test_a_transparent_picture_lies_on_white_from_memory_as_from_a_file(
    liquid: Liquid, tmp_path: Path
) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    image.save(tmp_path / "transparent.png")
    codes = liquid.encode(image)
    assert torch.equal(codes, liquid.encode(tmp_path / "transparent.png"))
    assert not torch.equal(codes, liquid.encode(image.convert("RGB")))


def test_describe_and_ask_return_text_and_batches_equal_single_calls(liquid: Liquid) -> None:
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    many = liquid.describe_many(images, max_tokens=8)
    assert many == [liquid.describe(image, max_tokens=8) for image in images]
    questions = [(images[0], "What colour?"), (images[1], "Is it a round thing or not?")]
    answers = liquid.ask_many(questions, max_tokens=8)
    assert answers == [liquid.ask(*question, max_tokens=8) for question in questions]
    assert all(isinstance(text, str) for text in many + answers)


def test_bad_questions_are_errors(liquid: Liquid, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40))
    with pytest.raises(DataError, match="question: is empty"):
        liquid.ask(image, " ")
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        liquid.describe(tmp_path / "missing.png")
    with pytest.raises(DataError, match="no message"):
        liquid.chat([])
    with pytest.raises(DataError, match="1 <image> in the messages for 0 pictures"):
        liquid.chat([user("<image>what is it?")])


def test_chat_is_its_stream_put_together(liquid: Liquid) -> None:
    messages = [user("Hello"), {"role": "assistant", "content": "Yes?"}, user("<image>Say")]
    image = Image.new("RGB", (40, 40), "green")
    reply = liquid.chat(messages, [image], max_tokens=12, seed=5)
    pieces = list(liquid.stream(messages, [image], max_tokens=12, seed=5))
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    if not reply.images:
        assert (reply.text, reply.images) == (text.strip(), ())
    assert reply == liquid.chat(messages, [image], max_tokens=12, seed=5) or reply.images


def test_a_picture_in_an_answer_is_shown_where_it_stands(
    liquid: Liquid, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = liquid.encode(Image.new("RGB", (40, 40), "green"))
    tokens = liquid.checkpoint.processor.sequences.encode("see this")

    def answer(_: object) -> list[object]:
        steps: list[object] = [TextStep(id=token) for token in tokens]
        return [*steps, ImageStep(codes=codes), *steps, End(finish="stop")]

    monkeypatch.setattr(liquid.engine, "stream", answer)
    reply = liquid.chat([user("draw")])
    assert reply.text == "see this<image>see this"
    assert [image.size for image in reply.images] == [liquid.sizes[0]]

    conversation = Conversation(liquid)
    pieces = list(conversation.say("draw"))
    assert [type(piece) for piece in pieces].count(Picture) == 1
    prompts: list[list[int]] = []
    monkeypatch.setattr(
        liquid.engine, "stream", lambda request: prompts.append(list(request.prompt)) or answer(0)
    )
    list(conversation.say("and now?"))
    drawn = liquid.checkpoint.processor.sequences.image(codes)
    joined = ",".join(map(str, prompts[0]))
    assert ",".join(map(str, drawn)) in joined


def test_a_text_model_chats_but_says_that_it_cannot_draw(checkpoint_folder: Path) -> None:
    full = Checkpoint.load(checkpoint_folder, "cpu", "float32")
    processor = type(full.processor)(full.processor.tokenizer, full.vocabulary)
    text_only = Liquid.from_checkpoint(
        dataclasses.replace(full, image_tokenizer=None, processor=processor)
    )
    assert isinstance(text_only.chat([user("Hello")], max_tokens=4).text, str)
    with pytest.raises(CheckpointError, match="not trained on pictures"):
        text_only.draw("an apple")
    with pytest.raises(CheckpointError, match="not trained on pictures"):
        text_only.describe(Image.new("RGB", (40, 40)))


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=folder) as caught:
        load(tmp_path / folder)
    assert "\n" not in str(caught.value)


def test_streamed_characters_are_whole(liquid: Liquid) -> None:
    tokenizer = liquid.checkpoint.processor.tokenizer
    text = "Äpfel 🍎 und 日本, naïve"
    ids = liquid.checkpoint.processor.sequences.encode(text)
    stream = Characters(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.rest() == words(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    broken = ids[: len(ids) // 2]
    stream = Characters(tokenizer)
    assert "".join(map(stream.add, broken)) + stream.rest() == words(tokenizer, broken)


class TestConversation:
    @pytest.fixture
    def seen(self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
        """Prompts the engine got; every answer is "yes"."""
        prompts: list[list[int]] = []
        tokens = liquid.checkpoint.processor.sequences.encode("yes")

        def stream(request: object) -> list[object]:
            prompts.append(list(request.prompt))  # type: ignore[attr-defined]
            return [*(TextStep(id=token) for token in tokens), End(finish="stop")]

        monkeypatch.setattr(liquid.engine, "stream", stream)
        return prompts

    def test_turns_and_pictures_are_remembered(self, liquid: Liquid, seen: list[list[int]]) -> None:
        image = Image.new("RGB", (40, 40), "blue")
        conversation = Conversation(liquid)
        conversation.attach(image)
        list(conversation.say("What?"))
        list(conversation.say("Sure?"))
        history = [user("<image>What?"), {"role": "assistant", "content": "yes"}, user("Sure?")]
        assert seen[0] == liquid.chat_prompt([user("<image>What?")], [image])
        assert seen[1] == liquid.chat_prompt(history, [image])
        conversation.reset()
        list(conversation.say("Sure?"))
        assert seen[2] == liquid.chat_prompt([user("Sure?")])

    def test_a_drawn_picture_is_remembered(self, liquid: Liquid, seen: list[list[int]]) -> None:
        conversation = Conversation(liquid)
        picture = conversation.draw("a cat")
        assert picture.image.size == liquid.sizes[0]
        list(conversation.say("Good?"))
        history = [user("a cat"), {"role": "assistant", "content": "<image>"}, user("Good?")]
        assert seen == [liquid.chat_prompt(history, [picture.codes])]

    def test_an_answer_that_is_broken_off_leaves_no_trace(
        self, liquid: Liquid, seen: list[list[int]]
    ) -> None:
        conversation = Conversation(liquid)
        conversation.attach(Image.new("RGB", (40, 40), "blue"))
        answer = conversation.say("first")
        next(answer)
        answer.close()
        list(conversation.say("second"))
        assert seen[1] == liquid.chat_prompt(
            [user("<image>second")], [Image.new("RGB", (40, 40), "blue")]
        )

    def test_the_oldest_turns_are_forgotten_when_the_context_is_full(
        self, liquid: Liquid, seen: list[list[int]]
    ) -> None:
        conversation = Conversation(liquid)
        conversation.attach(Image.new("RGB", (40, 40), "blue"))
        for turn in range(30):
            list(conversation.say(f"message {turn}"))
        assert conversation.forgotten > 0
        assert conversation.forgotten % 2 == 0
        context = liquid.engine.context
        assert all(len(prompt) + min(128, context // 4) <= context for prompt in seen)
        vocabulary = liquid.checkpoint.vocabulary
        assert vocabulary.boi in seen[0]
        assert vocabulary.boi not in seen[-1]

    def test_a_turn_too_long_on_its_own_is_an_error_and_forgets_nothing(
        self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = Conversation(liquid)
        conversation.draw("a cat")
        with pytest.raises(DataError, match="context"):
            list(conversation.say("word " * liquid.engine.context))
        assert conversation.forgotten == 0
        prompts: list[tuple[int, ...]] = []
        monkeypatch.setattr(
            liquid.engine, "stream", lambda request: prompts.append(request.prompt) or iter(())
        )
        list(conversation.say("Good?"))
        assert liquid.checkpoint.vocabulary.boi in prompts[0]

    def test_a_drawing_leaves_an_attached_picture_for_what_is_said_next(
        self, liquid: Liquid, seen: list[list[int]]
    ) -> None:
        image = Image.new("RGB", (40, 40), "blue")
        conversation = Conversation(liquid)
        conversation.attach(image)
        drawn = conversation.draw("a cat")
        list(conversation.say("Alike?"))
        list(conversation.say("Sure?"))
        history = [
            user("a cat"),
            {"role": "assistant", "content": "<image>"},
            user("<image>Alike?"),
            {"role": "assistant", "content": "yes"},
            user("Sure?"),
        ]
        assert seen[0] == liquid.chat_prompt(history[:3], [drawn.codes, image])
        assert seen[1] == liquid.chat_prompt(history, [drawn.codes, image])

    def test_a_placeholder_in_words_is_no_picture(
        self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = Conversation(liquid)
        for use in (conversation.draw, lambda text: list(conversation.say(text))):
            with pytest.raises(DataError, match="'<image>' stands for a picture"):
                use("an <image> of a cat")
        tokens = liquid.checkpoint.processor.sequences.encode("an <image>")
        assert len(tokens) > 1
        prompts: list[list[int]] = []

        def stream(request: object) -> list[object]:
            prompts.append(list(request.prompt))  # type: ignore[attr-defined]
            return [*(TextStep(id=token) for token in tokens), End(finish="stop")]

        monkeypatch.setattr(liquid.engine, "stream", stream)
        list(conversation.say("What?"))
        list(conversation.say("Sure?"))
        history = [user("What?"), {"role": "assistant", "content": "an image"}, user("Sure?")]
        assert prompts[1] == liquid.chat_prompt(history)
