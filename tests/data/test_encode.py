import json

import numpy as np
import pytest
import torch
from PIL import Image

from liquidmm.data.encode import EncodeConfig, encode, prepare
from liquidmm.data.shards import read_shards
from liquidmm.errors import ConfigError, DataError

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


def test_encode_writes_rows_and_quarantine(source, tmp_path):
    tokenizer = Tokenizer()
    manifest = encode(source, tokenizer, tmp_path / "out", CONFIG)
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["a", "b", "c", "d", "i"]
    assert [row.kind for row in rows] == ["image_text", "text", "chat", "image_text", "image_text"]
    assert rows[0].license == "MIT"
    assert rows[0].pictures[0].tolist() == [[15, 15], [15, 15]]
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
    kept = (tmp_path / "out/shard-00000.parquet").stat().st_mtime_ns
    encode(source, Tokenizer(), tmp_path / "out", CONFIG)
    encode(source, Tokenizer(), tmp_path / "whole", CONFIG)
    assert (tmp_path / "out/shard-00000.parquet").stat().st_mtime_ns == kept
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
