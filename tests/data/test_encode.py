import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from liquidmm.data.encode import EncodeConfig, encode, prepare
from liquidmm.data.shards import read_shards
from liquidmm.errors import ConfigError, DataError

PICTURE = (16, 16)
RED, BLUE = (255, 0, 0), (0, 0, 255)


class Tokenizer:
    """Codes are the mean of red in each 8 x 8 patch, 0 to 15."""

    codebook_size = 16
    factor = 8
    fingerprint = "patches"

    def __init__(self):
        self.pictures = 0

    def encode(self, pixels):
        self.pictures += len(pixels)
        patches = torch.nn.functional.avg_pool2d(pixels[:, :1], 8)[:, 0]
        return ((patches + 1) * 7.5).round().long()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (20, 20), RED).save(tmp_path / "p/red.png")
    Image.new("RGB", (16, 16), BLUE).save(tmp_path / "p/blue.png")
    Image.new("RGB", (40, 10), RED).save(tmp_path / "p/long.png")
    (tmp_path / "p/broken.png").write_bytes(b"\x89PNG nothing")
    turns = [{"role": "user", "content": "<image> ?"}, {"role": "assistant", "content": "red"}]
    lines = [
        {"key": "a", "image": "p/red.png", "caption": "red", "split": "train", "license": "MIT"},
        {"key": "b", "text": "words", "split": "train"},
        {"key": "c", "messages": turns, "images": ["p/red.png"], "split": "train"},
        {"key": "d", "image": "p/blue.png", "captions": ["blue", "azure"], "split": "test"},
        {"key": "e", "image": "p/long.png", "caption": "long", "split": "train"},
        {"key": "f", "image": "p/broken.png", "caption": "broken", "split": "train"},
        {"key": "g", "image": "p/none.png", "caption": "none", "split": "train"},
        {"key": "h", "text": 5, "split": "train"},
        {"key": "i", "image": "p/blue.png", "caption": "blue", "split": "train"},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


CONFIG = EncodeConfig(size=16, batch_size=2, shard_records=3, max_failures=0.5)
LENIENT = replace(CONFIG, max_failures=1.0)


def test_encode_writes_rows_and_quarantine(source, tmp_path):
    tokenizer = Tokenizer()
    manifest = encode(source, tokenizer, tmp_path / "out", CONFIG)
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["b", "a", "c", "d", "i"]
    assert [row.kind for row in rows] == ["text", "image_text", "chat", "image_text", "image_text"]
    assert rows[1].license == "MIT"
    assert rows[1].pictures[0].tolist() == [[15, 15], [15, 15]]
    assert rows[3].captions == ("blue", "azure")
    assert rows[3].pictures[0].tolist() == [[0, 0], [0, 0]]
    assert tokenizer.pictures == 3  # red is shared within its shard, blue stands in two shards
    assert manifest.complete
    assert (manifest.totals.records, manifest.totals.refused) == (5, 4)
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert [item["line"] for item in refused] == [5, 6, 7, 8]
    words = ["40 x 10 is 2 to 1 or longer", "broken.png", "no such file", "must be a string"]
    for item, word in zip(refused, words, strict=True):
        assert word in item["reason"]
        assert item["reason"].startswith(f"{source}:{item['line']}: ")
        assert item["source"] == str(source)


@pytest.fixture
def llava(tmp_path):
    """Pictures at the start, at the end and without a place; text only; two bad entries."""
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", PICTURE, RED).save(tmp_path / "train2017/1.png")
    Image.new("RGB", PICTURE, BLUE).save(tmp_path / "train2017/2.png")
    turns = [
        ("train2017/1.png", "<image>\nWhat is this?"),
        ("train2017/2.png", "What is this?\n<image>"),
        ("train2017/1.png", "What is this?"),
        (None, "What is this?"),
        (None, "What is <image>?"),
        ("train2017/3.png", "<image>\nWhat is this?"),
    ]
    items = [
        {
            "id": f"{number:03d}",
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "a red cat"},
            ],
        }
        | ({} if picture is None else {"image": picture})
        for number, (picture, question) in enumerate(turns)
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(items, indent=2))
    return path


def test_a_published_llava_file(llava, tmp_path, image_tokenizer, sequences):
    config = EncodeConfig(size=PICTURE[0], shard_records=4, max_failures=0.5)
    manifest = encode(llava, image_tokenizer, tmp_path / "out", config)
    assert manifest.totals.kinds == {"chat": 4}
    assert (manifest.totals.pictures, manifest.totals.refused) == (3, 2)
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["000", "001", "002", "003"]
    assert [row.messages[0].content for row in rows] == [
        "<image>\nWhat is this?",
        "What is this?\n<image>",
        "<image>\nWhat is this?",
        "What is this?",
    ]
    assert [len(row.pictures) for row in rows] == [1, 1, 1, 0]
    red, blue, again = (row.pictures[0] for row in rows[:3])
    assert red.shape == (4, 4)
    assert (red == again).all()
    assert (red != blue).any()
    # a picture whose place is not written is laid out as one written before the question
    ids = [sequences.chat(row.messages, row.pictures)[0] for row in rows]
    assert ids[2] == ids[0]
    assert [sequence.count(sequences.vocabulary.boi) for sequence in ids] == [1, 1, 1, 0]
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "source": str(llava),
            "line": 4,
            "where": f"{llava}[4]",
            "reason": f"{llava}[4]: says <image> and has no picture, so the word would stand for "
            "one. Name the picture in 'image', change the word, or leave the entry out.",
        },
        {
            "source": str(llava),
            "line": 5,
            "where": f"{llava}[5]",
            "reason": f"{llava}[5]: {tmp_path}/train2017/3.png: no such file. Check the path.",
        },
    ]


def test_pictures_may_lie_in_another_folder(llava, tmp_path):
    (tmp_path / "lists").mkdir()
    moved = llava.rename(tmp_path / "lists/llava.json")
    config = replace(CONFIG, image_root=tmp_path)
    manifest = encode(moved, Tokenizer(), tmp_path / "out", config)
    assert (manifest.totals.pictures, manifest.totals.refused) == (3, 2)
    assert manifest.origin.settings["image_root"] == str(tmp_path)
    with pytest.raises(DataError, match=r"settings\.image_root '.*', now it is None"):
        encode(moved, Tokenizer(), tmp_path / "out", CONFIG)
    with pytest.raises(ConfigError, match="image_root: no such folder"):
        encode(moved, Tokenizer(), tmp_path / "new", replace(CONFIG, image_root=tmp_path / "x"))
    plain = encode(tmp_path / "lists/llava.json", Tokenizer(), tmp_path / "none", LENIENT)
    assert "image_root" not in plain.origin.settings


def test_the_rest_of_a_broken_array_is_one_refusal(llava, tmp_path):
    llava.write_text(llava.read_text()[:-30])
    manifest = encode(llava, Tokenizer(), tmp_path / "out", CONFIG)
    assert (manifest.totals.records, manifest.totals.refused) == (4, 2)
    last = json.loads((tmp_path / "out/quarantine.jsonl").read_text().splitlines()[-1])
    assert (last["where"], last["line"]) == (f"{llava}[5]", 5)
    assert f"{llava}[5]: the file ends before the array does. From here on" in last["reason"]


def test_a_changed_array_is_another_source(llava, tmp_path):
    encode(llava, Tokenizer(), tmp_path / "out", CONFIG)
    llava.write_text(llava.read_text().replace("a red cat", "a cat"))
    with pytest.raises(DataError, match="was encoded with source_digest"):
        encode(llava, Tokenizer(), tmp_path / "out", CONFIG)


def test_a_second_run_does_nothing(source, tmp_path):
    encode(source, Tokenizer(), tmp_path / "out", CONFIG)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    tokenizer = Tokenizer()
    encode(source, tokenizer, tmp_path / "out", CONFIG)
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    assert tokenizer.pictures == 0
    assert after == before


def test_a_broken_off_run_is_finished(source, tmp_path):
    class Stops(Tokenizer):
        def encode(self, pixels):
            if self.pictures:
                raise KeyboardInterrupt
            return super().encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode(source, Stops(), tmp_path / "out", CONFIG)
    kept = (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns
    encode(source, Tokenizer(), tmp_path / "out", CONFIG)
    encode(source, Tokenizer(), tmp_path / "whole", CONFIG)
    assert (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns == kept
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_splits_are_selected(source, tmp_path):
    config = EncodeConfig(size=16, splits=("test",), max_failures=0.5)
    encode(source, Tokenizer(), tmp_path / "out", config)
    assert [row.key for row in read_shards(tmp_path / "out")] == ["d"]


def test_too_many_failures_stop_the_run(source, tmp_path):
    config = EncodeConfig(size=16, max_failures=0.3)
    with pytest.raises(DataError, match=r"quarantine\.jsonl: 4 of 9 entries were refused"):
        encode(source, Tokenizer(), tmp_path / "out", config)
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 4


def test_another_tokenizer_is_refused(source, tmp_path):
    encode(source, Tokenizer(), tmp_path / "out", CONFIG)
    other = Tokenizer()
    other.fingerprint = "other"
    with pytest.raises(DataError, match="fingerprint 'patches', now it is 'other'"):
        encode(source, other, tmp_path / "out", CONFIG)


def test_pad_shows_all_of_the_picture():
    image = prepare(Image.new("RGB", (40, 10), RED), EncodeConfig(size=16, prepare="pad"))
    assert image.size == (16, 16)
    pixels = np.asarray(image)
    assert tuple(pixels[0, 8]) == (122, 116, 104)
    assert tuple(pixels[8, 8]) == RED


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size: is 0"),
        ({"max_failures": 2.0}, "max_failures: is 2.0"),
        ({"max_aspect": 0.5}, "max_aspect: is 0.5"),
    ],
)
def test_config_is_checked(values, words):
    with pytest.raises(ConfigError, match=words):
        EncodeConfig(**values)


def test_size_must_fit_the_factor(source, tmp_path):
    with pytest.raises(ConfigError, match="size: 20 is no multiple of the tokenizer's factor 8"):
        encode(source, Tokenizer(), tmp_path / "out", EncodeConfig(size=20))
    (tmp_path / "clean.jsonl").write_text('{"text": "x", "split": "train"}')
    with pytest.raises(DataError, match="no records of the splits val"):
        encode(
            tmp_path / "clean.jsonl",
            Tokenizer(),
            tmp_path / "out",
            EncodeConfig(size=16, splits=("val",)),
        )
    assert not (tmp_path / "out").exists()
