import json
from pathlib import Path
from typing import Any

import pytest

from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import ChatRecord, TextRecord
from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.text import TextConfig, build_text, sentence
from liquidmm.icons.wordnet import Meaning, read_wordnet


def meaning(definition: str, *, part: str = "noun", kind: int = 5) -> Meaning:
    return Meaning(
        part=part,
        offset="1",
        kind=kind,
        words=("thing",),
        definition=definition,
        examples=(),
        parent="",
    )


def test_read_wordnet_drops_slurs_and_orders_meanings(wordnet: Path) -> None:
    net = read_wordnet(wordnet)
    apple = net.meanings["noun", "00000002"]
    assert apple == Meaning(
        part="noun",
        offset="00000002",
        kind=13,
        words=("apple", "pome"),
        definition="fruit with red or yellow or green skin",
        examples=("an apple a day",),
        parent="00000001",
    )
    assert [m.offset for m in net.meanings_of("noun", "apple")] == ["00000002", "00000003"]
    assert net.meanings["adj", "00000021"].words == ("hot",)
    assert ("noun", "00000005") not in net.meanings
    assert [word for word, _ in net.common()] == [
        "hot",
        "apple",
        "dog",
        "fruit",
        "penguin",
        "sleep",
        "run",
    ]


@pytest.mark.parametrize(
    ("word", "given", "expected"),
    [
        ("owl", meaning("nocturnal bird of prey"), "An owl is a nocturnal bird of prey."),
        ("dog", meaning("a member of the genus Canis"), "A dog is a member of the genus Canis."),
        ("penguin", meaning("birds of the south"), "Penguins are birds of the south."),
        ("jeans", meaning("trousers of denim", kind=6), "Jeans are trousers of denim."),
        ("bread", meaning("food made from dough", kind=13), "Bread is food made from dough."),
        ("cupcake", meaning("small cake", kind=13), "A cupcake is a small cake."),
        ("sleep", meaning("a natural state of rest", kind=26), "Sleep is a natural state of rest."),
        ("run", meaning("move fast", part="verb", kind=30), "To run is to move fast."),
        ("hot", meaning("not cold", part="adj", kind=0), "Hot means not cold."),
    ],
)  # fmt: skip
def test_sentence_fits_part_of_speech_and_number(word: str, given: Meaning, expected: str) -> None:
    assert sentence(word, given) == expected


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_build_text_writes_texts_and_conversations(
    wordnet: Path, icon_words: Path, tmp_path: Path
) -> None:
    summary = build_text(wordnet, tmp_path / "text", TextConfig(held_out=0), icons=icon_words)
    texts = {record["key"]: record["text"] for record in lines(tmp_path / "text/text.jsonl")}
    assert texts == {
        "adj/00000021": "Hot means of high temperature.",
        "noun/00000001": "Fruit is the ripened body of a seed plant.",
        "noun/00000002": "An apple is a fruit with red or yellow or green skin.",
        "noun/00000004": "A dog is a member of the genus Canis. The dog barked all night.",
        "noun/00000007": "Penguins are short-legged flightless birds of cold regions.",
        "noun/00000008": "Sleep is a natural state of rest.",
        "verb/00000011": "To run is to move fast.",
    }
    chats = {row["key"]: row["messages"] for row in lines(tmp_path / "text/chat.jsonl")}
    assert [m["content"] for m in chats["define/apple"]] == [
        "What is an apple?",
        "An apple is a fruit with red or yellow or green skin.",
    ]
    assert [m["content"] for m in chats["kind/apple"]] == [
        "What kind of thing is an apple?",
        "An apple is a kind of fruit.",
    ]
    assert "kind/dog" not in chats
    assert summary["icon_words"] == 1
    assert any(key.startswith("talk/") for key in chats)


def test_build_text_twice_gives_same_readable_records(wordnet: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_text(wordnet, tmp_path / name, TextConfig())
    for name, kind in (("text.jsonl", TextRecord), ("chat.jsonl", ChatRecord)):
        assert all(isinstance(record, kind) for record in read_jsonl(tmp_path / "a" / name))
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_text_and_questions_of_a_word_share_a_split(
    wordnet: Path, icon_words: Path, tmp_path: Path
) -> None:
    seen = set()
    for seed in range(12):
        out = tmp_path / str(seed)
        build_text(wordnet, out, TextConfig(held_out=0.5, seed=seed), icons=icon_words)
        rows = [*lines(out / "text.jsonl"), *lines(out / "chat.jsonl")]
        split = {row["key"]: row["split"] for row in rows}
        assert split["noun/00000002"] == split["define/apple"] == split["kind/apple"]
        seen.add(split["define/apple"])
    assert seen == {"train", "held_out"}


def test_max_meanings_keeps_words_of_icons(wordnet: Path, icon_words: Path, tmp_path: Path) -> None:
    for seed in range(5):
        out = tmp_path / str(seed)
        build_text(wordnet, out, TextConfig(max_meanings=1, seed=seed), icons=icon_words)
        assert [row["key"] for row in lines(out / "text.jsonl")] == ["noun/00000002"]


def test_tarball_damaged_or_incomplete_rejected(wordnet_with: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.tgz"):
        read_wordnet(tmp_path / "missing.tgz")
    with pytest.raises(DataError, match=r"part\.tgz.*package/dict/data.adj"):
        read_wordnet(wordnet_with(tmp_path / "part.tgz", data_adj=None))
    with pytest.raises(DataError, match=r"bad\.tgz.*WordNet"):
        read_wordnet(wordnet_with(tmp_path / "bad.tgz", index_noun="apple\n"))


def test_missing_icons_and_bad_shares_rejected(wordnet: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"held_out.*1"):
        TextConfig(held_out=1)
    with pytest.raises(DataError, match="`liquid icons build`"):
        build_text(wordnet, tmp_path / "text", TextConfig(), icons=tmp_path)
    assert not (tmp_path / "text").exists()
