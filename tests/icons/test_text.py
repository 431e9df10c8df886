import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from liquidmm.cli.data import command
from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import ChatRecord, TextRecord
from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.text import TextConfig, build_text, sentence
from liquidmm.icons.wordnet import Meaning, read_wordnet

LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"
FILES = {
    "data.noun": (
        "00000001 13 n 01 fruit 0 000 | the ripened body of a seed plant\n"
        "00000002 13 n 02 apple 0 pome 0 001 @ 00000001 n 0000 | fruit with red or yellow or green"
        ' skin (and crisp flesh); "an apple a day"\n'
        "00000003 20 n 01 apple 0 000 | native Eurasian tree; widely cultivated\n"
        '00000004 05 n 02 dog 0 Canis_familiaris 0 000 | a member of the genus Canis; "the dog'
        ' barked all night"; "dog and cat"\n'
        "00000005 18 n 01 bad_word 0 000 | (ethnic slur) a word nobody should use\n"
        "00000006 15 n 01 Paris 0 000 | the capital of France\n"
        "00000007 05 n 01 penguin 0 000 | short-legged flightless birds of cold regions\n"
        "00000008 26 n 01 sleep 0 000 | a natural state of rest\n"
    ),
    "index.noun": (
        "apple n 2 1 @ 2 1 00000002 00000003\n"
        "bad_word n 1 0 1 1 00000005\n"
        "dog n 1 0 1 1 00000004\n"
        "fruit n 1 0 1 1 00000001\n"
        "paris n 1 0 1 1 00000006\n"
        "penguin n 1 0 1 1 00000007\n"
        "sleep n 1 0 1 1 00000008\n"
    ),
    "data.verb": '00000011 30 v 01 run 0 000 01 + 02 00 | move fast; "She ran home"; "run!"\n',
    "index.verb": "run v 1 0 1 1 00000011\n",
    "data.adj": "00000021 00 a 01 hot(a) 0 000 | of high temperature\n",
    "index.adj": "hot a 1 0 1 1 00000021\n",
    "data.adv": "00000031 02 r 01 slowly 0 000 | without speed\n",
    "index.adv": "slowly r 1 0 1 0 00000031\n",
}


def pack(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = (LICENCE + content).encode()
            entry = tarfile.TarInfo(f"package/dict/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("wordnet") / "wordnet.tgz", FILES)


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    folder = tmp_path / "icons"
    folder.mkdir()
    record = {"name": "red apple", "group": "food-drink"}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    return folder


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


def test_wordnet_is_read(tarball: Path) -> None:
    net = read_wordnet(tarball)
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
def test_sentences(word: str, given: Meaning, expected: str) -> None:
    assert sentence(word, given) == expected


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_text_and_conversations(tarball: Path, icons: Path, tmp_path: Path) -> None:
    summary = build_text(tarball, tmp_path / "text", TextConfig(held_out=0), icons=icons)
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


def test_records_can_be_read_and_bytes_repeat(tarball: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_text(tarball, tmp_path / name, TextConfig())
    for name, kind in (("text.jsonl", TextRecord), ("chat.jsonl", ChatRecord)):
        assert all(isinstance(record, kind) for record in read_jsonl(tmp_path / "a" / name))
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_word_is_held_out_as_a_whole(tarball: Path, icons: Path, tmp_path: Path) -> None:
    seen = set()
    for seed in range(12):
        out = tmp_path / str(seed)
        build_text(tarball, out, TextConfig(held_out=0.5, seed=seed), icons=icons)
        rows = [*lines(out / "text.jsonl"), *lines(out / "chat.jsonl")]
        split = {row["key"]: row["split"] for row in rows}
        assert split["noun/00000002"] == split["define/apple"] == split["kind/apple"]
        seen.add(split["define/apple"])
    assert seen == {"train", "held_out"}


def test_a_limit_keeps_the_words_of_icons(tarball: Path, icons: Path, tmp_path: Path) -> None:
    for seed in range(5):
        out = tmp_path / str(seed)
        build_text(tarball, out, TextConfig(max_meanings=1, seed=seed), icons=icons)
        assert [row["key"] for row in lines(out / "text.jsonl")] == ["noun/00000002"]


def test_bad_input(tarball: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_wordnet(tmp_path / "missing.tgz")
    with pytest.raises(DataError, match=r"no file package/dict/data.adj"):
        read_wordnet(pack(tmp_path / "part.tgz", {"data.noun": ""}))
    with pytest.raises(DataError, match="not in WordNet's format"):
        read_wordnet(pack(tmp_path / "bad.tgz", {**FILES, "index.noun": "apple\n"}))
    with pytest.raises(ConfigError, match="held_out: 1"):
        TextConfig(held_out=1)
    with pytest.raises(DataError, match="Make it with `liquid data icons`"):
        build_text(tarball, tmp_path / "text", TextConfig(), icons=tmp_path)
    assert not (tmp_path / "text").exists()


def test_command(tarball: Path, tmp_path: Path) -> None:
    arguments = ["text", "--wordnet", str(tarball), "-o", str(tmp_path / "text")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["texts"] == 7
