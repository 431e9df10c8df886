"""Ids: bos 0, eos 1, boi 2, eoi 3, unconditional 4, turns 5 and 6, words from 7, codes from 26."""

from dataclasses import replace

import numpy as np
import pytest

from liquidmm import prompts
from liquidmm.config import from_dict
from liquidmm.data import examples
from liquidmm.data.examples import IGNORE_INDEX, ExampleBuilder, ExampleConfig, caption_in_sentence
from liquidmm.data.records import Message
from liquidmm.data.samples import Sample
from liquidmm.errors import ConfigError, DataError

GRID = np.array([[0, 1], [2, 63]], dtype=np.uint16)
IMAGE = [2, 26, 27, 28, 89, 3]
IMAGE_TEXT = Sample(kind="image_text", key="k", captions=("a red cat", "blue"), image_codes=(GRID,))
PLAIN = ExampleConfig(caption_dropout=0, first_caption_prob=1, chat_format_prob=0)


@pytest.fixture(autouse=True)
def one_request(monkeypatch):
    monkeypatch.setattr(prompts, "REQUESTS", (" Draw this.",))
    monkeypatch.setattr(examples, "CHAT_REQUESTS", ("Draw {}.",))


def rng(seed=0):
    return np.random.default_rng(seed)


def built(sequences, sample, task, config=PLAIN, seed=0):
    """Return the token ids, and the labels with None where they are ignored."""
    example = ExampleBuilder(sequences, config).build(sample, task, rng(seed))
    assert example.task == task
    assert example.key == sample.key
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    labels = [None if label == IGNORE_INDEX else label for label in example.labels.tolist()]
    return example.input_ids.tolist(), labels


def test_text_labels_every_token(sequences, bare_sequences):
    sample = Sample(kind="text", key="t", text="a cat <eos>")
    ids, labels = built(sequences, sample, "text")
    assert ids[:3] == [0, 8, 10]
    assert ids[-1] == 1
    assert 1 not in ids[:-1]  # the letters of a marker are not the marker
    assert labels == ids
    assert built(bare_sequences, Sample(kind="text", key="t", text="a cat"), "text") == (
        [8, 10],
        [8, 10],
    )


def test_text_to_image_labels_image_tokens_and_ends(sequences, bare_sequences):
    prompt = [8, 9, 10, 20, 16, 21]
    ids, labels = built(sequences, IMAGE_TEXT, "text_to_image")
    assert ids == [0, *prompt, *IMAGE, 1]
    assert labels == [None] * 8 + [26, 27, 28, 89, 3, 1]
    ids, labels = built(bare_sequences, IMAGE_TEXT, "text_to_image")
    assert ids == [*prompt, *IMAGE]
    assert labels == [None] * 7 + [26, 27, 28, 89, 3]


def test_first_row_only_ends_after_the_first_row(sequences):
    plain = ExampleConfig(caption_dropout=0, first_caption_prob=1, chat_format_prob=0)
    whole, labels = built(sequences, IMAGE_TEXT, "text_to_image", plain)
    config = replace(plain, first_row_only_prob=1)
    assert built(sequences, IMAGE_TEXT, "text_to_image", config) == (whole[:10], labels[:10])
    assert built(sequences, IMAGE_TEXT, "image_to_text", config) == built(
        sequences, IMAGE_TEXT, "image_to_text"
    )
    in_chat = replace(config, chat_format_prob=1)
    assert built(sequences, IMAGE_TEXT, "text_to_image", in_chat)[0][-3:] == [2, 26, 27]


def test_first_row_only_prob_is_kept(sequences):
    config = ExampleConfig(first_row_only_prob=0.5)
    ends = [
        built(sequences, IMAGE_TEXT, "text_to_image", config, seed)[0][-1] for seed in range(300)
    ]
    assert 0.4 < ends.count(27) / len(ends) < 0.6


def test_caption_dropout_replaces_the_text(sequences):
    config = ExampleConfig(caption_dropout=1)
    ids, labels = built(sequences, IMAGE_TEXT, "text_to_image", config)
    assert ids == [0, 4, *IMAGE, 1]
    assert labels == [None] * 3 + [26, 27, 28, 89, 3, 1]


def test_image_to_text_labels_the_first_caption(sequences):
    ids, labels = built(sequences, IMAGE_TEXT, "image_to_text")
    assert ids == [0, *IMAGE, 13, 14, 15, 16, 17, 18, 19, 8, 9, 10, 1]
    assert labels == [None] * 14 + [8, 9, 10, 1]


def test_chat_labels_the_assistant(sequences):
    messages = (
        Message(role="user", content="<image>\nwhat is this?"),
        Message(role="assistant", content="a cat"),
        Message(role="user", content="red?"),
        Message(role="assistant", content="blue"),
    )
    sample = Sample(kind="chat", key="c", messages=messages, image_codes=(GRID,))
    ids, labels = built(sequences, sample, "chat")
    first = [0, 5, 11, *IMAGE, 22, 18, 16, 23, 6, 5, 12]
    assert ids == [*first, 8, 10, 6, 5, 11, 9, 23, 6, 5, 12, 24, 6]
    assert labels == [*[None] * len(first), 8, 10, 6, *[None] * 7, 24, 6]


def test_text_to_image_in_chat_format_labels_the_image(sequences):
    config = ExampleConfig(caption_dropout=0, first_caption_prob=1, chat_format_prob=1)
    ids, labels = built(sequences, IMAGE_TEXT, "text_to_image", config)
    prompt = [0, 5, 11, 20, 8, 9, 10, 21, 6, 5, 12]
    assert ids == [*prompt, *IMAGE, 6]
    assert labels == [*[None] * len(prompt), *IMAGE, 6]


def test_probabilities_are_kept(sequences):
    builder = ExampleBuilder(
        sequences,
        ExampleConfig(caption_dropout=0.2, first_caption_prob=0.5, chat_format_prob=0.25),
    )
    source = rng()
    found = [
        builder.build(IMAGE_TEXT, "text_to_image", source).input_ids.tolist() for _ in range(2000)
    ]
    dropped = sum(ids[1] == 4 for ids in found)
    in_chat = sum(ids[1] == 5 for ids in found)
    first = sum(9 in ids for ids in found)
    assert 340 < dropped < 460
    assert 340 < in_chat < 460
    assert 1100 < first < 1300  # of the 1600 with text: half, and half of the other half


def test_build_equal_generators_give_equal_examples(sequences):
    config = ExampleConfig(caption_dropout=0.5)
    for seed in range(20):
        assert built(sequences, IMAGE_TEXT, "text_to_image", config, seed) == built(
            sequences, IMAGE_TEXT, "text_to_image", config, seed
        )


def test_size_hint_needs_the_downsample_factor(sequences):
    config = ExampleConfig(caption_dropout=0, chat_format_prob=0, size_hint=True)
    with pytest.raises(ConfigError, match="size_hint"):
        ExampleBuilder(sequences, config)
    grid = np.zeros((1, 2), dtype=np.uint16)
    sample = Sample(kind="image_text", key="k", captions=("a cat",), image_codes=(grid,))
    ids = (
        ExampleBuilder(sequences, config, downsample_factor=8)
        .build(sample, "text_to_image", rng())
        .input_ids
    )
    text = prompts.text_to_image_prompt("a cat", " Draw this.", (16, 8))
    assert ids.tolist() == [0, *sequences.encode(text), 2, 26, 26, 3, 1]


def test_build_only_samples_without_images_can_split(sequences):
    builder = ExampleBuilder(sequences, PLAIN)
    text = builder.build(Sample(kind="text", key="t", text="a"), "text", rng())
    assert text.can_split
    assert not builder.build(IMAGE_TEXT, "image_to_text", rng()).can_split


def test_build_errors_name_the_sample(sequences):
    builder = ExampleBuilder(sequences, PLAIN)
    with pytest.raises(DataError, match=r"k: .*image_text.*chat"):
        builder.build(IMAGE_TEXT, "chat", rng())
    bad = Sample(kind="image_text", key="bad", captions=("a",), image_codes=(GRID + 1,))
    with pytest.raises(DataError, match=r"bad: .*code 64"):
        builder.build(bad, "text_to_image", rng())
    with pytest.raises(ConfigError, match="Did you mean 'text'"):
        builder.build(IMAGE_TEXT, "txt", rng())
    with pytest.raises(ConfigError, match=r"caption_dropout: .*1\.5"):
        ExampleConfig(caption_dropout=1.5)


@pytest.mark.parametrize(
    ("caption", "inside"),
    [
        ("A red cat.", "a red cat"),
        ("The cat", "the cat"),
        ("T-shirt", "T-shirt"),
        ("USA flag", "USA flag"),
        ("an <image>", "an image"),
    ],
)
def test_caption_in_sentence(caption, inside):
    assert caption_in_sentence(caption) == inside


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("guidance_dropout", "caption_dropout"),
        ("first_caption_share", "first_caption_prob"),
        ("draw_in_chat_share", "chat_format_prob"),
        ("opening_share", "first_row_only_prob"),
    ],
)
def test_config_old_keys_suggest_new_ones(old, new):
    with pytest.raises(ConfigError, match=rf"{old}: unknown key.*'{new}'"):
        from_dict(ExampleConfig, {old: 0.5}, "run.toml")
