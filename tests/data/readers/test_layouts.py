from pathlib import Path
from typing import get_args

import pytest

from liquidmm.data.readers.config import Layout
from liquidmm.data.readers.layouts import LAYOUT_BY_KEY, LAYOUTS, parse_fields, rename_fields
from liquidmm.data.records import ChatRecord, ImageTextRecord, Message, TextRecord
from liquidmm.errors import DataError

ROOT = Path("/data")
HELLO = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
JOURNEYDB = {
    "img_path": "./007/a.jpg",
    "prompt": "a cat --v 4",
    "Task1": {"Style": ["photo"], "Content": [], "Atmosphere": [], "Others": []},
    "Task2": {"Caption": "A cat sits."},
    "Task3": {"Style Relevant Questions and Answers": []},
}
SLIMPAJAMA = {"text": "words", "meta": {"redpajama_set_name": "RedPajamaC4"}}
STARCODER = {
    "max_stars_repo_path": "a.py",
    "max_stars_repo_name": "b/c",
    "max_stars_count": 3,
    "id": "12",
    "content": "import os\n",
}
STACK = {
    "hexsha": "f00",
    "content": "import os\n",
    "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
}
DCLM = {
    "text": "words",
    "url": "http://x",
    "metadata": {"Content-Length": "3"},
    "warcinfo": "x",
    "previous_word_count": 1,
}
SPEAKERS = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
ROLES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("layout", "fields", "record"),
    [
        (
            "journeydb",
            JOURNEYDB,
            ImageTextRecord(
                key="f:1", image=ROOT / "007/a.jpg", captions=("A cat sits.", "a cat --v 4")
            ),
        ),
        (
            "journeydb",
            JOURNEYDB | {"Task2": {}},
            ImageTextRecord(key="f:1", image=ROOT / "007/a.jpg", captions=("a cat --v 4",)),
        ),
        ("slimpajama", SLIMPAJAMA, TextRecord(key="f:1", text="words", source="RedPajamaC4")),
        ("starcoder", STARCODER, TextRecord(key="12", text="import os\n")),
        (
            "starcoder",
            STACK,
            TextRecord(key="f00", text="import os\n", license="MIT AND Apache-2.0"),
        ),
        ("dclm", DCLM, TextRecord(key="f:1", text="words")),
        ("dclm", DCLM | {"image": "a.png"}, TextRecord(key="f:1", text="words")),
        ("sharegpt", {"id": "x", "conversations": SPEAKERS}, ChatRecord(key="x", messages=HELLO)),
        ("lmsys", {"conversation": ROLES}, ChatRecord(key="f:1", messages=HELLO)),
        ("liquid", {"messages": ROLES, "key": "k"}, ChatRecord(key="k", messages=HELLO)),
        (
            "imagefolder",
            {"file_name": "a.png", "text": "a cat"},
            ImageTextRecord(key="f:1", image=ROOT / "a.png", captions=("a cat",)),
        ),
    ],
)
def test_parse_fields_every_published_layout(layout, fields, record):
    assert parse_fields(fields, "f:1", ROOT, layout) == record


def test_parse_fields_auto_detects_layout_from_keys():
    for fields in (JOURNEYDB, STARCODER, {"conversations": SPEAKERS}, {"conversation": ROLES}):
        layout = next(name for key, name in LAYOUT_BY_KEY.items() if key in fields)
        assert parse_fields(fields, "f:1", ROOT) == parse_fields(fields, "f:1", ROOT, layout)
    assert parse_fields(SLIMPAJAMA, "f:1", ROOT) == TextRecord(key="f:1", text="words")


def test_parse_fields_named_layout_rejects_others():
    for layout in LAYOUTS:
        with pytest.raises(DataError, match=f"^f:1: expected '.*layout '{layout}'.*instruction"):
            parse_fields({"instruction": "x"}, "f:1", ROOT, layout)
    with pytest.raises(DataError, match="^f:1: expected 'conversations'.*'llava'.* keys text"):
        parse_fields({"text": "x"}, "f:1", ROOT, "llava")
    assert set(get_args(Layout)) == {"auto", *LAYOUTS}


def test_parse_fields_named_fields_take_precedence():
    named = {"captions": ("Task2.Caption",), "key": ("id",)}
    record = parse_fields(JOURNEYDB | {"id": 3}, "f:1", ROOT, "journeydb", named)
    assert (record.key, record.captions) == ("3", ("A cat sits.",))
    with pytest.raises(DataError, match="'image' without a caption"):
        parse_fields(JOURNEYDB | {"Task2": {}}, "f:1", ROOT, "journeydb", named)
    named = {"messages": ("turns",)}
    record = parse_fields({"turns": SPEAKERS}, "f:1", ROOT, "llava", named)
    assert record == ChatRecord(key="f:1", messages=HELLO)
    assert parse_fields({"turns": ROLES}, "f:1", ROOT, "auto", named) == record


@pytest.mark.parametrize(
    ("named", "fields", "expected"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"image": ("x",)}, {"image": 1, "x": 2, "y": 3}, {"image": 2, "x": 2, "y": 3}),
        ({"image": ("x", "y")}, {"y": 3}, {"image": 3, "y": 3}),
        ({"image": ("a.b",)}, {"a": {"b": 3}}, {"image": 3, "a": {"b": 3}}),
        ({"image": ("a.b",)}, {"a.b": 4, "a": {"b": 3}}, {"image": 4, "a.b": 4, "a": {"b": 3}}),
        ({"image": ("a.b",)}, {"a": 1}, {"a": 1}),
        ({"captions": ("x", "y")}, {"x": "p", "y": ["q"]}, {"captions": ["p", "q"]}),
        ({"captions": ("x",)}, {"x": "", "caption": "p"}, {}),
        ({"captions": ("x",)}, {"image": 1, "text": "p"}, {"image": 1}),
        ({"text": ("x",)}, {"x": "p", "image": 1, "messages": 2}, {"text": "p"}),
        ({"text": ("x",), "image": ("i",)}, {"x": "p", "i": 1}, {"text": "p", "image": 1}),
        ({"license": ("x",)}, {"x": ["a", "b"]}, {"license": "a AND b"}),
        ({"key": ("x",)}, {"x": 7}, {"key": "7"}),
        ({"key": ("x",)}, {"x": 7.5}, {"key": 7.5}),
    ],
)
def test_rename_fields_named_replace_ours(named, fields, expected):
    found = rename_fields(fields, named)
    ours = {name: value for name, value in found.items() if name in expected}
    assert ours == expected
    assert not {"image", "captions", "caption", "text", "messages"} & (
        found.keys() - expected.keys()
    )
