from pathlib import Path

import pytest

from liquidmm.data.readers.layouts import parse_entry
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
    """An entry with the values of the turns, human first."""
    pairs = enumerate(turns)
    return {"conversations": [(gpt if n % 2 else human)(value) for n, value in pairs], **more}


def test_llava():
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
    assert parse_entry(entry, "f[0]", ROOT) == ChatRecord(
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
def test_where_the_picture_stands(turns, contents):
    record = parse_entry(llava(*turns, image="a.png"), "f[0]", ROOT)
    assert tuple(message.content for message in record.messages) == contents
    assert record.images == (ROOT / "a.png",)


def test_the_picture_without_a_place_stands_behind_the_system_turn():
    entry = {
        "conversations": [{"from": "system", "value": "Be brief."}, human("What?"), gpt("A cat.")],
        "image": "a.png",
    }
    assert parse_entry(entry, "f[0]", ROOT).messages == (
        Message(role="system", content="Be brief."),
        user("<image>\nWhat?"),
        assistant("A cat."),
    )


def test_several_pictures():
    turns = ("<image> and <image>: which?", "The first.")
    expected = (ROOT / "a.png", ROOT / "b.png")
    for name in ("image", "images"):
        record = parse_entry(llava(*turns, **{name: ["a.png", "b.png"]}), "f[0]", ROOT)
        assert record.images == expected


def test_pictures_inside_a_parquet_file():
    entry = llava("<image>\n?", "A.", image={"bytes": b"PNG", "path": "a.png"})
    assert parse_entry(entry, "f[0]", ROOT).images == (b"PNG",)
    entry = llava("<image>\n?", "A.", image={"bytes": None, "path": "a.png"})
    assert parse_entry(entry, "f[0]", ROOT).images == (ROOT / "a.png",)


def test_text_only_llava_and_sharegpt():
    for more in ({}, {"image": None}, {"images": []}):
        record = parse_entry(llava("Hi.", "Hello.", "Bye.", id="7_0", **more), "f[3]", ROOT)
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
def test_sharegpt_speakers(speakers, roles):
    turns = [{"from": speaker, "value": "words"} for speaker in speakers]
    record = parse_entry({"conversations": turns}, "f:1", ROOT)
    assert record == ChatRecord(
        key="f:1", messages=tuple(Message(role=role, content="words") for role in roles)
    )


def test_lmsys():
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
    assert parse_entry(entry, "f[0]", ROOT) == ChatRecord(
        key="33f01939a744455c869cb234afca47f1",
        messages=(user("how many <b>s are there?"), assistant(" None.\n")),
    )


def test_our_own_layouts_and_common_keys():
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    own = parse_entry({"messages": turns}, "f:1", ROOT)
    assert own == ChatRecord(key="f:1", messages=(user("Hi."), assistant("Hello.")))
    assert parse_entry({"text": "words"}, "f:1", ROOT) == TextRecord(key="f:1", text="words")
    assert parse_entry({"image": "a.png", "caption": "a"}, "f:1", ROOT) == ImageTextRecord(
        key="f:1", image=ROOT / "a.png", captions=("a",)
    )
    common = {"key": "k", "source": "s", "license": "MIT", "split": "train"}
    record = parse_entry(llava("Hi.", "Hello.", id=7, **common), "f:1", ROOT)
    assert (record.key, record.source, record.license, record.split) == tuple(common.values())
    assert parse_entry(llava("Hi.", "Hello.", id=7), "f:1", ROOT).key == "7"


KNOWN = (
    "Known: 'conversations' with or without 'image' (LLaVA, ShareGPT), 'conversation' "
    "(LMSYS-Chat-1M), 'messages' (and 'images'), 'image' and 'captions', 'text', 'content' "
    "(StarCoder), 'img_path' (JourneyDB)."
)
BAD = [
    ([1], "not a JSON object (got list [1]). Write an object there."),
    ({}, f"fits no layout (its keys: no keys). {KNOWN}"),
    (
        {"instruction": "Say hi.", "output": "hi"},
        f"fits no layout (its keys: instruction, output). {KNOWN}",
    ),
    (
        {"conversations": []},
        "'conversations' must be a list of turns (got list []). Correct the entry or leave it out.",
    ),
    (
        {"conversation": "hi"},
        "'conversation' must be a list of turns (got str 'hi'). Correct the entry or leave it out.",
    ),
    (
        {"conversations": [human("Hi."), "Hello."]},
        "conversations[1]: a turn must be an object (got str 'Hello.'). Give 'from' and 'value'.",
    ),
    (
        {"conversations": [{"role": "user", "content": "Hi."}]},
        "conversations[0]: a turn with other keys (content, role). Give 'from' and 'value'.",
    ),
    (
        {"conversation": [human("Hi.")]},
        "conversation[0]: a turn with other keys (from, value). Give 'role' and 'content'.",
    ),
    (
        {"conversations": [{"from": "tool", "value": "3"}]},
        (
            "conversations[0]: unknown speaker 'tool'. Known: assistant, bard, bing, chatgpt, gpt, "
            "human, system, user."
        ),
    ),
    (
        {"conversations": [human("Hi."), {"from": "gtp", "value": "Hello."}]},
        "conversations[1]: unknown speaker 'gtp'. Did you mean 'gpt'?",
    ),
    (llava("Hi.", ""), "conversations[1]: 'value' is empty. Fill it in or drop the record."),
    (
        llava("Hi.", None),
        "conversations[1]: 'value' must be a string (got nothing). Correct the record.",
    ),
    (
        llava("Hi.", "\ud83d"),
        "conversations[1]: 'value' contains half of a surrogate pair ('\\ud83d' at 0). Correct the record.",
    ),
    (
        {"conversations": [gpt("Hello."), human("Hi."), gpt("Well.")]},
        (
            "conversations[0] is the assistant's, and what it answers is missing. "
            "Cut the turn off or leave the entry out."
        ),
    ),
    (
        {"conversations": [{"from": "system", "value": "Be brief."}, gpt("Hello.")]},
        (
            "conversations[1] is the assistant's, and what it answers is missing. "
            "Cut the turn off or leave the entry out."
        ),
    ),
    (
        {"conversations": [human("Hi."), gpt("Hello."), gpt("Well?")]},
        (
            "conversations[2] is the assistant's second turn in a row. "
            "Join the two or leave the entry out."
        ),
    ),
    (
        {"conversations": [human("Hi."), {"from": "system", "value": "Be brief."}, gpt("Hello.")]},
        "conversations[1] is a system turn behind the start. Leave the entry out.",
    ),
    (
        llava("Hi."),
        "'conversations' has no assistant turn, so nothing to learn. Leave the entry out.",
    ),
    (
        llava("Write <image> in HTML.", "<img>"),
        (
            "says <image> and has no picture, so the word would stand for one. "
            "Name the picture in 'image', change the word, or leave the entry out."
        ),
    ),
    (
        {
            "conversation": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "<image>"},
            ]
        },
        (
            "says <image> and has no picture, so the word would stand for one. "
            "Name the picture in 'image', change the word, or leave the entry out."
        ),
    ),
    (
        llava("<image>\n<image>\nWhat?", "A cat.", image="a.png"),
        "1 images for 2 <image> in the turns. Give one image per placeholder, in order.",
    ),
    (
        llava("What?", "A cat.", image=["a.png", "b.png"]),
        "2 images for 0 <image> in the turns. Give one image per placeholder, in order.",
    ),
    (
        llava("<image>", "A cat.", image=""),
        "'image' is empty. Fill it in or drop the record.",
    ),
    (
        llava("<image>", "A cat.", image=[3]),
        "'image' must be a string (got int 3). Correct the record.",
    ),
    (
        llava("<image>", "A cat.", image="a.png", images=["a.png"]),
        "has both 'image' and 'images'. Leave one of them out.",
    ),
    (
        llava("What happens?", "A cat runs.", video="a.mp4"),
        "has 'video', and only pictures are read. Leave it out.",
    ),
    (
        llava("Hi.", "Hello.", id=["x"]),
        "'id' must be a string (got list ['x']). Correct the record.",
    ),
    (
        llava("Hi.", "Hello.", license=3),
        "'license' must be a string (got int 3). Correct the record.",
    ),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_bad_entries_are_named(entry, message):
    with pytest.raises(DataError) as error:
        parse_entry(entry, "f.json[7]", ROOT)
    assert str(error.value) == f"f.json[7]: {message}"
