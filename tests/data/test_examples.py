"""Ids: bos 0, eos 1, boi 2, eoi 3, unconditional 4, turns 5 and 6, words from 7, codes from 26."""

from dataclasses import replace

import numpy as np
import pytest

from liquidmm import prompts
from liquidmm.data import examples as render
from liquidmm.data.examples import IGNORE, ExampleBuilder, ExampleConfig
from liquidmm.data.records import Message
from liquidmm.data.shard_file import Row
from liquidmm.errors import ConfigError, DataError

GRID = np.array([[0, 1], [2, 63]], dtype=np.uint16)
PICTURE = [2, 26, 27, 28, 89, 3]
IMAGE_TEXT = Row(kind="image_text", key="k", captions=("a red cat", "blue"), pictures=(GRID,))
PLAIN = ExampleConfig(guidance_dropout=0, first_caption_share=1, draw_in_chat_share=0)


@pytest.fixture(autouse=True)
def one_request(monkeypatch):
    monkeypatch.setattr(prompts, "REQUESTS", (" Draw this.",))
    monkeypatch.setattr(render, "DRAW_REQUESTS", ("Draw {}.",))


def rng(seed=0):
    return np.random.default_rng(seed)


def rendered(sequences, row, task, config=PLAIN, seed=0):
    """Return the ids, and only those that are learnt with None elsewhere."""
    example = ExampleBuilder(sequences, config).render(row, task, rng(seed))
    assert example.task == task
    assert example.key == row.key
    assert example.input_ids.dtype == example.labels.dtype == np.int32
    labels = [None if label == IGNORE else label for label in example.labels.tolist()]
    return example.input_ids.tolist(), labels


def test_text_learns_all(sequences, bare_sequences):
    row = Row(kind="text", key="t", text="a cat <eos>")
    ids, labels = rendered(sequences, row, "text")
    assert ids[:3] == [0, 8, 10]
    assert ids[-1] == 1
    assert 1 not in ids[:-1]  # the letters of a marker are not the marker
    assert labels == ids
    assert rendered(bare_sequences, Row(kind="text", key="t", text="a cat"), "text") == (
        [8, 10],
        [8, 10],
    )


def test_text_to_image_learns_codes_and_ends(sequences, bare_sequences):
    prompt = [8, 9, 10, 20, 16, 21]
    ids, labels = rendered(sequences, IMAGE_TEXT, "text_to_image")
    assert ids == [0, *prompt, *PICTURE, 1]
    assert labels == [None] * 8 + [26, 27, 28, 89, 3, 1]
    ids, labels = rendered(bare_sequences, IMAGE_TEXT, "text_to_image")
    assert ids == [*prompt, *PICTURE]
    assert labels == [None] * 7 + [26, 27, 28, 89, 3]


def test_an_opening_ends_after_the_first_row_of_codes(sequences):
    plain = ExampleConfig(guidance_dropout=0, first_caption_share=1, draw_in_chat_share=0)
    whole, labels = rendered(sequences, IMAGE_TEXT, "text_to_image", plain)
    config = replace(plain, opening_share=1)
    assert rendered(sequences, IMAGE_TEXT, "text_to_image", config) == (whole[:10], labels[:10])
    assert rendered(sequences, IMAGE_TEXT, "image_to_text", config) == rendered(
        sequences, IMAGE_TEXT, "image_to_text"
    )
    in_chat = replace(config, draw_in_chat_share=1)
    assert rendered(sequences, IMAGE_TEXT, "text_to_image", in_chat)[0][-3:] == [2, 26, 27]


def test_openings_are_a_share_of_the_drawings(sequences):
    config = ExampleConfig(opening_share=0.5)
    ends = [
        rendered(sequences, IMAGE_TEXT, "text_to_image", config, seed)[0][-1] for seed in range(300)
    ]
    assert 0.4 < ends.count(27) / len(ends) < 0.6


def test_guidance_dropout_replaces_the_text(sequences):
    config = ExampleConfig(guidance_dropout=1)
    ids, labels = rendered(sequences, IMAGE_TEXT, "text_to_image", config)
    assert ids == [0, 4, *PICTURE, 1]
    assert labels == [None] * 3 + [26, 27, 28, 89, 3, 1]


def test_image_to_text_learns_the_first_caption(sequences):
    ids, labels = rendered(sequences, IMAGE_TEXT, "image_to_text")
    assert ids == [0, *PICTURE, 13, 14, 15, 16, 17, 18, 19, 8, 9, 10, 1]
    assert labels == [None] * 14 + [8, 9, 10, 1]


def test_chat_learns_the_assistant(sequences):
    messages = (
        Message(role="user", content="<image>\nwhat is this?"),
        Message(role="assistant", content="a cat"),
        Message(role="user", content="red?"),
        Message(role="assistant", content="blue"),
    )
    row = Row(kind="chat", key="c", messages=messages, pictures=(GRID,))
    ids, labels = rendered(sequences, row, "chat")
    first = [0, 5, 11, *PICTURE, 22, 18, 16, 23, 6, 5, 12]
    assert ids == [*first, 8, 10, 6, 5, 11, 9, 23, 6, 5, 12, 24, 6]
    assert labels == [*[None] * len(first), 8, 10, 6, *[None] * 7, 24, 6]


def test_drawing_in_a_chat_learns_the_picture(sequences):
    config = ExampleConfig(guidance_dropout=0, first_caption_share=1, draw_in_chat_share=1)
    ids, labels = rendered(sequences, IMAGE_TEXT, "text_to_image", config)
    prompt = [0, 5, 11, 20, 8, 9, 10, 21, 6, 5, 12]
    assert ids == [*prompt, *PICTURE, 6]
    assert labels == [*[None] * len(prompt), *PICTURE, 6]


def test_shares_are_kept(sequences):
    renderer = ExampleBuilder(
        sequences,
        ExampleConfig(guidance_dropout=0.2, first_caption_share=0.5, draw_in_chat_share=0.25),
    )
    source = rng()
    drawn = [
        renderer.render(IMAGE_TEXT, "text_to_image", source).input_ids.tolist() for _ in range(2000)
    ]
    dropped = sum(ids[1] == 4 for ids in drawn)
    in_chat = sum(ids[1] == 5 for ids in drawn)
    first = sum(9 in ids for ids in drawn)
    assert 340 < dropped < 460
    assert 340 < in_chat < 460
    assert 1100 < first < 1300  # of the 1600 with text: half, and half of the other half


def test_equal_generators_give_equal_examples(sequences):
    config = ExampleConfig(guidance_dropout=0.5)
    for seed in range(20):
        assert rendered(sequences, IMAGE_TEXT, "text_to_image", config, seed) == rendered(
            sequences, IMAGE_TEXT, "text_to_image", config, seed
        )


def test_size_hint_needs_the_factor(sequences):
    config = ExampleConfig(guidance_dropout=0, draw_in_chat_share=0, size_hint=True)
    with pytest.raises(ConfigError, match="size_hint"):
        ExampleBuilder(sequences, config)
    grid = np.zeros((1, 2), dtype=np.uint16)
    row = Row(kind="image_text", key="k", captions=("a cat",), pictures=(grid,))
    ids = (
        ExampleBuilder(sequences, config, downsample_factor=8)
        .render(row, "text_to_image", rng())
        .input_ids
    )
    text = prompts.text_to_image_prompt("a cat", " Draw this.", (16, 8))
    assert ids.tolist() == [0, *sequences.encode(text), 2, 26, 26, 3, 1]


def test_only_rows_without_pictures_may_be_cut(sequences):
    renderer = ExampleBuilder(sequences, PLAIN)
    text = renderer.render(Row(kind="text", key="t", text="a"), "text", rng())
    assert text.splittable
    assert not renderer.render(IMAGE_TEXT, "image_to_text", rng()).splittable


def test_messages_name_the_row(sequences):
    renderer = ExampleBuilder(sequences, PLAIN)
    with pytest.raises(DataError, match=r"k: a row of kind image_text cannot teach chat"):
        renderer.render(IMAGE_TEXT, "chat", rng())
    bad = Row(kind="image_text", key="bad", captions=("a",), pictures=(GRID + 1,))
    with pytest.raises(DataError, match=r"bad: .*code 64"):
        renderer.render(bad, "text_to_image", rng())
    with pytest.raises(ConfigError, match="Did you mean 'text'"):
        renderer.render(IMAGE_TEXT, "txt", rng())
    with pytest.raises(ConfigError, match="guidance_dropout: is 1.5"):
        ExampleConfig(guidance_dropout=1.5)


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
def test_captions_inside_a_sentence(caption, inside):
    assert render._inside_sentence(caption) == inside
