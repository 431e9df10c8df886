from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import liquidmm
from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.generate.chat import Conversation
from liquidmm.generate.detokenize import TextStream, detokenize
from liquidmm.generate.liquid import Liquid, load
from liquidmm.generate.outputs import End, Event, ImagePiece, ImageStep, TextPiece, TextStep
from liquidmm.generate.requests import TextRequest, TokenRequest, chat_request
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.state import RequestHandle
from liquidmm.model.checkpoint import Checkpoint

WILD = SamplingConfig(temperature=2.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def liquid(checkpoint_folder: Path) -> Liquid:
    return load(checkpoint_folder, "cpu", "float32")


def pixels(image: Image.Image) -> list[int]:
    return np.asarray(image).flatten().tolist()


def answers(events: Sequence[Event], prompts: list[list[int]]) -> Any:
    """Return a replacement for `Engine.run` with fixed events that records the prompts."""

    def run(requests: Sequence[TokenRequest], progress: object = None) -> Iterator[Any]:
        for request in requests:
            prompts.append(list(request.prompt))
            handle = RequestHandle(request=request, done=True)
            yield from ((handle, event) for event in events)

    return run


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_public_names() -> None:
    assert liquidmm.Liquid is Liquid
    assert liquidmm.load is load
    assert liquidmm.SamplingConfig is SamplingConfig


def test_sampling_defaults_of_checkpoint_or_reference(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # The reference samples from the likelier half of the codes; here there are 16.
    assert Liquid(checkpoint).sampling == SamplingConfig(top_k=8)
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


def test_image_has_trained_size_and_depends_on_seed(liquid: Liquid) -> None:
    first = liquid.generate_image("a red apple", seed=1, sampling=WILD)
    assert first.size == liquid.sizes[0]
    assert first.mode == "RGB"
    assert pixels(first) == pixels(liquid.generate_image("a red apple", seed=1, sampling=WILD))
    others = [
        pixels(liquid.generate_image("a red apple", seed=seed, sampling=WILD)) for seed in (2, 3)
    ]
    assert pixels(first) not in others


def test_many_images_equal_single_ones(liquid: Liquid) -> None:
    prompts = ["a red apple", "a house with a long and winding description", "b"]
    many = liquid.generate_images(prompts)
    for seed, (prompt, image) in enumerate(zip(prompts, many, strict=True)):
        assert pixels(image) == pixels(liquid.generate_image(prompt, seed=seed))
    assert liquid.generate_images([]) == []


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_empty_prompt_raises(liquid: Liquid, prompt: str) -> None:
    with pytest.raises(DataError, match="prompt: .*empty"):
        liquid.generate_image(prompt)


def test_prompt_longer_than_context_raises(liquid: Liquid) -> None:
    context = liquid.engine.context
    with pytest.raises(DataError, match=rf"prompt: \d{{3,}} tokens and \d+ image .* {context} "):
        liquid.generate_image("apple " * context)
    with pytest.raises(DataError, match=rf"prompt: \d{{3,}} tokens and 1 text .* {context} "):
        liquid.chat([user("apple " * context)])


def test_untrained_size_lists_trained_ones(liquid: Liquid) -> None:
    width, height = liquid.sizes[0]
    with pytest.raises(ConfigError, match=rf"size: .* 48x48\. Choose one of: {width}x{height}"):
        liquid.generate_image("an apple", size=(48, 48))
    assert liquid.generate_image("an apple", size=(width, height)).size == (width, height)


def test_different_numbers_of_seeds_and_prompts_raise(liquid: Liquid) -> None:
    with pytest.raises(ConfigError, match="seeds: .*1 for 2 prompts"):
        liquid.generate_images(["a", "b"], seeds=[0])


def test_encode_and_decode_trained_size(liquid: Liquid, tmp_path: Path) -> None:
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


def test_transparent_image_on_white_from_memory_and_file(liquid: Liquid, tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    image.save(tmp_path / "transparent.png")
    codes = liquid.encode(image)
    assert torch.equal(codes, liquid.encode(tmp_path / "transparent.png"))
    assert not torch.equal(codes, liquid.encode(image.convert("RGB")))


def test_describe_many_and_ask_many_equal_single_calls(liquid: Liquid) -> None:
    images = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    many = liquid.describe_many(images, max_tokens=8)
    assert many == [liquid.describe(image, max_tokens=8) for image in images]
    questions = [(images[0], "What color?"), (images[1], "Is it a round thing or not?")]
    answers = liquid.ask_many(questions, max_tokens=8)
    assert answers == [liquid.ask(*question, max_tokens=8) for question in questions]
    assert all(isinstance(text, str) for text in many + answers)


def test_invalid_questions_raise(liquid: Liquid, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40))
    with pytest.raises(DataError, match="question: is empty"):
        liquid.ask(image, " ")
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        liquid.describe(tmp_path / "missing.png")
    with pytest.raises(DataError, match="messages: .*got none|prompt: .*no messages"):
        liquid.chat([])
    with pytest.raises(DataError, match="<image> in the messages.* 1 for 0 images"):
        liquid.chat([user("<image>what is it?")])


def test_chat_equals_its_stream(liquid: Liquid) -> None:
    messages = [user("Hello"), {"role": "assistant", "content": "Yes?"}, user("<image>Say")]
    image = Image.new("RGB", (40, 40), "green")
    reply = liquid.chat(messages, [image], max_tokens=12, seed=5)
    pieces = list(liquid.stream(chat_request(messages, [image], max_tokens=12, seed=5)))
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    if not reply.images:
        assert (reply.text, reply.images) == (text.strip(), ())
    assert reply == liquid.chat(messages, [image], max_tokens=12, seed=5) or reply.images


def test_image_in_answer_is_placed_in_text(liquid: Liquid, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = liquid.encode(Image.new("RGB", (40, 40), "green"))
    tokens = liquid.checkpoint.processor.sequences.encode("see this")
    text = [TextStep(token=token) for token in tokens]
    events = [*text, ImageStep(codes=codes), *text, End(finish="stop")]
    prompts: list[list[int]] = []
    monkeypatch.setattr(liquid.engine, "run", answers(events, prompts))
    reply = liquid.chat([user("draw")])
    assert reply.text == "see this<image>see this"
    assert [image.size for image in reply.images] == [liquid.sizes[0]]

    conversation = Conversation(liquid)
    pieces = list(conversation.say("draw"))
    assert [type(piece) for piece in pieces].count(ImagePiece) == 1
    list(conversation.say("and now?"))
    generated = liquid.checkpoint.processor.sequences.image(codes)
    assert ",".join(map(str, generated)) in ",".join(map(str, prompts[-1]))


def test_text_model_chats_but_generates_no_images(checkpoint_folder: Path) -> None:
    full = Checkpoint.load(checkpoint_folder, "cpu", "float32")
    processor = type(full.processor)(full.processor.tokenizer, full.vocabulary)
    text_only = Liquid(dataclasses.replace(full, image_tokenizer=None, processor=processor))
    assert isinstance(text_only.chat([user("Hello")], max_tokens=4).text, str)
    with pytest.raises(CheckpointError, match="not trained on images"):
        text_only.generate_image("an apple")
    with pytest.raises(CheckpointError, match="not trained on images"):
        text_only.describe(Image.new("RGB", (40, 40)))


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_invalid_folder_is_one_line_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=folder) as caught:
        load(tmp_path / folder)
    assert "\n" not in str(caught.value)


def test_streamed_characters_are_complete(liquid: Liquid) -> None:
    tokenizer = liquid.checkpoint.processor.tokenizer
    text = "Äpfel 🍎 und 日本, naïve"
    ids = liquid.checkpoint.processor.sequences.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.flush() == detokenize(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    broken = ids[: len(ids) // 2]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, broken)) + stream.flush() == detokenize(tokenizer, broken)


class TestConversation:
    @pytest.fixture
    def seen(self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
        """Prompts of the engine, which answers "yes"."""
        prompts: list[list[int]] = []
        tokens = liquid.checkpoint.processor.sequences.encode("yes")
        events = [*(TextStep(token=token) for token in tokens), End(finish="stop")]
        run = liquid.engine.run
        replaced = answers(events, prompts)

        def text_only(requests: Sequence[TokenRequest], progress: Any = None) -> Iterator[Any]:
            is_text = isinstance(requests[0], TextRequest)
            return (replaced if is_text else run)(requests, progress)

        monkeypatch.setattr(liquid.engine, "run", text_only)
        return prompts

    def test_turns_and_images_are_kept(self, liquid: Liquid, seen: list[list[int]]) -> None:
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

    def test_generated_image_is_kept(self, liquid: Liquid, seen: list[list[int]]) -> None:
        conversation = Conversation(liquid)
        generated = conversation.generate_image("a cat")
        assert generated.image.size == liquid.sizes[0]
        list(conversation.say("Good?"))
        history = [user("a cat"), {"role": "assistant", "content": "<image>"}, user("Good?")]
        assert seen == [liquid.chat_prompt(history, [generated.codes])]

    def test_interrupted_answer_leaves_no_trace(
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

    def test_oldest_turns_dropped_when_context_full(
        self, liquid: Liquid, seen: list[list[int]]
    ) -> None:
        conversation = Conversation(liquid)
        conversation.attach(Image.new("RGB", (40, 40), "blue"))
        for turn in range(30):
            list(conversation.say(f"message {turn}"))
        assert conversation.dropped > 0
        assert conversation.dropped % 2 == 0
        context = liquid.engine.context
        assert all(len(prompt) + min(128, context // 4) <= context for prompt in seen)
        vocabulary = liquid.checkpoint.vocabulary
        assert vocabulary.boi in seen[0]
        assert vocabulary.boi not in seen[-1]

    def test_too_long_turn_raises_and_drops_nothing(
        self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = Conversation(liquid)
        conversation.generate_image("a cat")
        with pytest.raises(DataError, match="context"):
            list(conversation.say("word " * liquid.engine.context))
        assert conversation.dropped == 0
        prompts: list[list[int]] = []
        monkeypatch.setattr(liquid.engine, "run", answers([End(finish="stop")], prompts))
        list(conversation.say("Good?"))
        assert liquid.checkpoint.vocabulary.boi in prompts[0]

    def test_attached_image_stays_after_generating(
        self, liquid: Liquid, seen: list[list[int]]
    ) -> None:
        image = Image.new("RGB", (40, 40), "blue")
        conversation = Conversation(liquid)
        conversation.attach(image)
        generated = conversation.generate_image("a cat")
        list(conversation.say("Alike?"))
        list(conversation.say("Sure?"))
        history = [
            user("a cat"),
            {"role": "assistant", "content": "<image>"},
            user("<image>Alike?"),
            {"role": "assistant", "content": "yes"},
            user("Sure?"),
        ]
        assert seen[0] == liquid.chat_prompt(history[:3], [generated.codes, image])
        assert seen[1] == liquid.chat_prompt(history, [generated.codes, image])

    def test_placeholder_in_text_is_not_an_image(
        self, liquid: Liquid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = Conversation(liquid)
        for use in (conversation.generate_image, lambda text: list(conversation.say(text))):
            with pytest.raises(DataError, match="'<image>' is reserved"):
                use("an <image> of a cat")
        tokens = liquid.checkpoint.processor.sequences.encode("an <image>")
        assert len(tokens) > 1
        prompts: list[list[int]] = []
        events = [*(TextStep(token=token) for token in tokens), End(finish="stop")]
        monkeypatch.setattr(liquid.engine, "run", answers(events, prompts))
        list(conversation.say("What?"))
        list(conversation.say("Sure?"))
        history = [user("What?"), {"role": "assistant", "content": "an image"}, user("Sure?")]
        assert prompts[1] == liquid.chat_prompt(history)
