from pathlib import Path

import pytest

from liquidmm.data.records import (
    ChatRecord,
    ImageTextRecord,
    Message,
    TextRecord,
    images_of,
    parse_record,
)
from liquidmm.errors import DataError

ROOT = Path("/data")
TURNS = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]


def test_image_text_record_accepts_all_caption_keys():
    expected = ImageTextRecord(
        key="k", image=ROOT / "a.png", captions=("a cat",), source="s", license="MIT", split="train"
    )
    common = {"key": "k", "image": "a.png", "source": "s", "license": "MIT", "split": "train"}
    for caption in ({"captions": ["a cat"]}, {"caption": "a cat"}, {"text_prompt": "a cat"}):
        record = parse_record(common | caption | {"concept": "cat"}, "f:1", ROOT)
        assert record == expected
    assert images_of(expected) == (ROOT / "a.png",)


def test_text_record_without_key_uses_its_location():
    record = parse_record({"text": "hello"}, "f.jsonl:3", ROOT)
    assert record == TextRecord(key="f.jsonl:3", text="hello")
    assert images_of(record) == ()


def test_chat_record_has_messages_and_images():
    record = parse_record({"messages": TURNS, "images": ["a.png"]}, "f:1", ROOT)
    assert record == ChatRecord(
        key="f:1",
        messages=(
            Message(role="user", content="<image>\nWhat?"),
            Message(role="assistant", content="A cat."),
        ),
        images=(ROOT / "a.png",),
    )


def test_images_are_paths_urls_or_bytes():
    file = {"bytes": b"PNG", "path": "a.png"}
    turns = [
        {"role": "user", "content": "<image><image><image><image>"},
        {"role": "assistant", "content": "Four."},
    ]
    images = ["./a.png", "s3://b/c.png", b"PNG", file]
    record = parse_record({"messages": turns, "images": images}, "f:1", ROOT)
    assert record.images == (ROOT / "a.png", "s3://b/c.png", b"PNG", b"PNG")
    record = parse_record({"messages": turns, "images": images}, "f:1", "hf://datasets/x")
    assert record.images[0] == "hf://datasets/x/a.png"
    record = parse_record({"image": {"bytes": None, "path": "/x/a.png"}, "text": "a"}, "f:1", ROOT)
    assert (record.image, record.captions) == (Path("/x/a.png"), ("a",))


def test_turn_content_in_parts_is_joined():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": parts}, TURNS[1]]
    record = parse_record({"messages": turns, "images": ["a.png"]}, "f:1", ROOT)
    assert record.messages[0].content == "<image>\nWhat?"
    with pytest.raises(DataError, match=r"messages\[0\]: a part of 'content' must be of type"):
        parse_record({"messages": [{"role": "user", "content": ["x"]}, TURNS[1]]}, "f:1", ROOT)


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ([], "not a JSON object (got list [])"),
        ({"prompt": "x"}, "not a record (prompt)"),
        ({}, "not a record (no keys)"),
        ({"text": 5}, "'text' must be a string (got int 5)"),
        ({"text": "  "}, "'text' is empty"),
        ({"text": "x", "license": None}, "'license' must be a string (got nothing)"),
        ({"image": "a.png"}, "'image' without a caption"),
        ({"image": b"", "caption": "x"}, "'image' is empty (0 bytes)"),
        ({"image": {"bytes": None, "path": None}, "text": "x"}, "'image' must be a string (got no"),
        ({"image": 1, "caption": "x"}, "'image' must be a string (got int 1)"),
        ({"image": "a.png", "captions": []}, "'captions' is empty"),
        ({"image": "a.png", "captions": ["x", ""]}, "'captions' contains an empty string"),
        ({"image": "a.png", "captions": [1]}, "'captions' must be a list of strings"),
        ({"messages": []}, "'messages' must be a list of turns"),
        ({"messages": ["hi"]}, "messages[0]: a turn must be an object"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "Did you mean 'user'?"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": TURNS}, "0 images for 1 <image>"),
        (
            {"messages": TURNS, "images": "a.png"},
            "'images' must be a list of images (got str 'a.png')",
        ),
    ],
)
def test_bad_record_error_names_place_and_value(obj, words):
    with pytest.raises(DataError) as error:
        parse_record(obj, "f.jsonl:7", ROOT)
    assert str(error.value).startswith("f.jsonl:7: ")
    assert words in str(error.value)
