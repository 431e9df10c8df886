from pathlib import Path

import pytest

from liquidmm.data.readers.layouts import parse_fields
from liquidmm.data.records import ChatRecord, ImageTextRecord, Message, TextRecord
from liquidmm.errors import DataError

ROOT = Path("/data")


def user(content):
    return Message(role="user", content=content)


def assistant(content):
    return Message(role="assistant", content=content)


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


def llava(*turns, **more):
    """A record with the given turns, human first."""
    pairs = enumerate(turns)
    return {"conversations": [(gpt if n % 2 else human)(value) for n, value in pairs], **more}


def test_llava_conversation_parsed():
    entry = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            human("<image>\nWhat are the colors of the bus?"),
            gpt("White and red."),
            human("Is it moving?"),
            gpt("Yes."),
        ],
        "model": "",
    }
    assert parse_fields(entry, "f[0]", ROOT) == ChatRecord(
        key="000000033471",
        messages=(
            user("<image>\nWhat are the colors of the bus?"),
            assistant("White and red."),
            user("Is it moving?"),
            assistant("Yes."),
        ),
        images=(ROOT / "coco/train2017/000000033471.jpg",),
    )


@pytest.mark.parametrize(
    ("turns", "contents"),
    [
        (("What?\n<image>", "A cat."), ("What?\n<image>", "A cat.")),
        (("What?", "A cat."), ("<image>\nWhat?", "A cat.")),
        (("Hi.", "Hello.", "<image>\nWhat?", "A."), ("Hi.", "Hello.", "<image>\nWhat?", "A.")),
        (("Hi.", "Hello.", "What?", "A cat."), ("<image>\nHi.", "Hello.", "What?", "A cat.")),
        (("<image>", "A cat."), ("<image>", "A cat.")),
    ],
    ids=["at the end", "missing", "in a later turn", "missing in all turns", "alone"],
)
def test_llava_image_placeholder_kept_or_added(turns, contents):
    record = parse_fields(llava(*turns, image="a.png"), "f[0]", ROOT)
    assert tuple(message.content for message in record.messages) == contents
    assert record.images == (ROOT / "a.png",)


def test_llava_placeholder_added_after_system_turn():
    entry = {
        "conversations": [{"from": "system", "value": "Be brief."}, human("What?"), gpt("A cat.")],
        "image": "a.png",
    }
    assert parse_fields(entry, "f[0]", ROOT).messages == (
        Message(role="system", content="Be brief."),
        user("<image>\nWhat?"),
        assistant("A cat."),
    )


def test_llava_several_images():
    turns = ("<image> and <image>: which?", "The first.")
    expected = (ROOT / "a.png", ROOT / "b.png")
    for name in ("image", "images"):
        record = parse_fields(llava(*turns, **{name: ["a.png", "b.png"]}), "f[0]", ROOT)
        assert record.images == expected


def test_llava_images_as_bytes_and_structs():
    entry = llava("<image>\n?", "A.", image={"bytes": b"PNG", "path": "a.png"})
    assert parse_fields(entry, "f[0]", ROOT).images == (b"PNG",)
    entry = llava("<image>\n?", "A.", image={"bytes": None, "path": "a.png"})
    assert parse_fields(entry, "f[0]", ROOT).images == (ROOT / "a.png",)


def test_llava_without_image_is_text_chat():
    for more in ({}, {"image": None}, {"images": []}):
        record = parse_fields(llava("Hi.", "Hello.", "Bye.", id="7_0", **more), "f[3]", ROOT)
        assert record == ChatRecord(
            key="7_0", messages=(user("Hi."), assistant("Hello."), user("Bye."))
        )


@pytest.mark.parametrize(
    ("speakers", "roles"),
    [
        (("human", "gpt"), ("user", "assistant")),
        (("user", "chatgpt"), ("user", "assistant")),
        (("user", "assistant"), ("user", "assistant")),
        (("system", "human", "bing"), ("system", "user", "assistant")),
        (("human", "bard", "human"), ("user", "assistant", "user")),
    ],
)
def test_sharegpt_speakers_become_roles(speakers, roles):
    turns = [{"from": speaker, "value": "words"} for speaker in speakers]
    record = parse_fields({"conversations": turns}, "f:1", ROOT)
    assert record == ChatRecord(
        key="f:1", messages=tuple(Message(role=role, content="words") for role in roles)
    )


def test_lmsys_conversation_parsed():
    entry = {
        "conversation_id": "33f01939a744455c869cb234afca47f1",
        "model": "wizardlm-13b",
        "conversation": [
            {"content": "how many <b>s are there?", "role": "user"},
            {"content": " None.\n", "role": "assistant"},
        ],
        "turn": 1,
        "language": "English",
        "openai_moderation": [{"flagged": False}, {"flagged": False}],
        "redacted": True,
    }
    assert parse_fields(entry, "f[0]", ROOT) == ChatRecord(
        key="33f01939a744455c869cb234afca47f1",
        messages=(user("how many <b>s are there?"), assistant(" None.\n")),
    )


def test_common_keys_in_every_layout():
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    own = parse_fields({"messages": turns}, "f:1", ROOT)
    assert own == ChatRecord(key="f:1", messages=(user("Hi."), assistant("Hello.")))
    assert parse_fields({"text": "words"}, "f:1", ROOT) == TextRecord(key="f:1", text="words")
    assert parse_fields({"image": "a.png", "caption": "a"}, "f:1", ROOT) == ImageTextRecord(
        key="f:1", image=ROOT / "a.png", captions=("a",)
    )
    common = {"key": "k", "source": "s", "license": "MIT", "split": "train"}
    record = parse_fields(llava("Hi.", "Hello.", id=7, **common), "f:1", ROOT)
    assert (record.key, record.source, record.license, record.split) == tuple(common.values())
    assert parse_fields(llava("Hi.", "Hello.", id=7), "f:1", ROOT).key == "7"


BAD = [
    ([1], r"list \[1\]"),
    ({}, r"keys: no keys.*LLaVA, ShareGPT.*LMSYS.*StarCoder.*JourneyDB"),
    ({"instruction": "Say hi.", "output": "hi"}, "keys: instruction, output"),
    ({"conversations": []}, r"conversations.* list \[\]"),
    ({"conversation": "hi"}, "conversation.* str 'hi'"),
    (
        {"conversations": [human("Hi."), "Hello."]},
        r"conversations\[1\]: .*'from' and 'value'.*str 'Hello\.'",
    ),
    (
        {"conversations": [{"role": "user", "content": "Hi."}]},
        r"conversations\[0\]: .*'from' and 'value'.*content, role",
    ),
    ({"conversation": [human("Hi.")]}, r"conversation\[0\]: .*'role' and 'content'.*from, value"),
    (
        {"conversations": [{"from": "tool", "value": "3"}]},
        r"\[0\]: .*'tool'.*assistant, bard, bing",
    ),
    (
        {"conversations": [human("Hi."), {"from": "gtp", "value": "Hello."}]},
        r"conversations\[1\]: .*'gtp'.*'gpt'\?",
    ),
    (llava("Hi.", ""), r"conversations\[1\]: .*value.*empty"),
    (llava("Hi.", None), r"conversations\[1\]: .*value.*nothing"),
    (llava("Hi.", "\ud83d"), r"conversations\[1\]: .*value.*ud83d' at 0"),
    (
        {"conversations": [gpt("Hello."), human("Hi."), gpt("Well.")]},
        r"conversations\[0\]: .*assistant",
    ),
    (
        {"conversations": [{"from": "system", "value": "Be brief."}, gpt("Hello.")]},
        r"conversations\[1\]: .*assistant",
    ),
    (
        {"conversations": [human("Hi."), gpt("Hello."), gpt("Well?")]},
        r"conversations\[2\]: .*assistant in a row",
    ),
    (
        {"conversations": [human("Hi."), {"from": "system", "value": "Be brief."}, gpt("Hello.")]},
        r"conversations\[1\]: .*system turn",
    ),
    (llava("Hi."), "conversations.* no assistant turn"),
    (llava("Write <image> in HTML.", "<img>"), "<image>.*no 'image'"),
    (
        {
            "conversation": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "<image>"},
            ]
        },
        "<image>.*no 'image'",
    ),
    (llava("<image>\n<image>\nWhat?", "A cat.", image="a.png"), "1 images for 2 <image>"),
    (llava("What?", "A cat.", image=["a.png", "b.png"]), "2 images for 0 <image>"),
    (llava("<image>", "A cat.", image=""), "image.*empty"),
    (llava("<image>", "A cat.", image=[3]), "image.*int 3"),
    (llava("<image>", "A cat.", image="a.png", images=["a.png"]), "both 'image' and 'images'"),
    (llava("What happens?", "A cat runs.", video="a.mp4"), "video.* only images"),
    (llava("Hi.", "Hello.", id=["x"]), r"id.*list \['x'\]"),
    (llava("Hi.", "Hello.", license=3), "license.*int 3"),
]


@pytest.mark.parametrize(("record", "pattern"), BAD)
def test_bad_record_rejected_with_place_and_value(record, pattern):
    with pytest.raises(DataError, match=r"^f\.json\[7\]: .*" + pattern):
        parse_fields(record, "f.json[7]", ROOT)
