import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from liquidmm.data.readers import SourceConfig
from liquidmm.data.shards import read_shards
from liquidmm.encode import BucketConfig, EncodeConfig, EngineConfig, TokenizerFile, encode
from liquidmm.errors import ConfigError, DataError

PICTURE = (16, 16)
RED, BLUE = (255, 0, 0), (0, 0, 255)
CONFIG = EncodeConfig(size=16, batch_size=2, shard_records=3, max_failures=0.5)
LENIENT = replace(CONFIG, max_failures=1.0)


def run(path, tokenizer, out, config=CONFIG, **source):
    return encode(SourceConfig(path=str(path), **source), tokenizer, out, config)


def refused(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_encode_writes_rows_and_quarantine(source, tokenizer, tmp_path):
    manifest = run(source, tokenizer, tmp_path / "out")
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["b", "a", "c", "d", "i"]
    assert [row.kind for row in rows] == ["text", "image_text", "chat", "image_text", "image_text"]
    assert rows[1].license == "MIT"
    assert rows[1].image_codes[0].tolist() == [[15, 15], [15, 15]]
    assert rows[3].captions == ("blue", "azure")
    assert rows[3].image_codes[0].tolist() == [[0, 0], [0, 0]]
    assert tokenizer.pictures == 3  # red is shared within its shard, blue stands in two shards
    assert manifest.complete
    assert (manifest.totals.records, manifest.totals.rejected) == (5, 4)
    assert [item["line"] for item in refused(tmp_path / "out")] == [5, 6, 7, 8]
    words = ["40 x 10 is 2 to 1 or longer", "broken.png", "no such file", "must be a string"]
    for item, word in zip(refused(tmp_path / "out"), words, strict=True):
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


def test_a_published_llava_file(llava, tmp_path, image_tokenizer_folder, sequences):
    config = EncodeConfig(size=PICTURE[0], shard_records=4, max_failures=0.5)
    tokenizer = TokenizerFile(path=image_tokenizer_folder, device="cpu")
    source = SourceConfig(path=str(llava))
    manifest = encode(source, tokenizer, tmp_path / "out", config, EngineConfig(workers=1))
    assert manifest.totals.kinds == {"chat": 4}
    assert (manifest.totals.images, manifest.totals.rejected) == (3, 2)
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["000", "001", "002", "003"]
    assert [row.messages[0].content for row in rows] == [
        "<image>\nWhat is this?",
        "What is this?\n<image>",
        "<image>\nWhat is this?",
        "What is this?",
    ]
    assert [len(row.image_codes) for row in rows] == [1, 1, 1, 0]
    red, blue, again = (row.image_codes[0] for row in rows[:3])
    assert red.shape == (4, 4)
    assert (red == again).all()
    assert (red != blue).any()
    # a picture whose place is not written is laid out as one written before the question
    ids = [sequences.chat(row.messages, row.image_codes)[0] for row in rows]
    assert ids[2] == ids[0]
    assert [sequence.count(sequences.vocabulary.boi) for sequence in ids] == [1, 1, 1, 0]
    first, second = refused(tmp_path / "out")
    assert (first["source"], first["line"], first["where"]) == (str(llava), 4, f"{llava}[4]")
    assert re.match(r".*llava\.json\[4\]: .*<image>.*no 'image'", first["reason"])
    assert second == {
        "source": str(llava),
        "line": 5,
        "where": f"{llava}[5]",
        "reason": f"{llava}[5]: {tmp_path}/train2017/3.png: no such file. Check the path.",
    }


def test_pictures_may_lie_in_another_folder(llava, tokenizer, tmp_path):
    (tmp_path / "lists").mkdir()
    moved = llava.rename(tmp_path / "lists/llava.json")
    manifest = run(moved, tokenizer, tmp_path / "out", image_root=str(tmp_path))
    assert (manifest.totals.images, manifest.totals.rejected) == (3, 2)
    assert manifest.provenance.settings["image_root"] == str(tmp_path)
    with pytest.raises(DataError, match=r"settings\.image_root '.*None"):
        run(moved, tokenizer, tmp_path / "out")
    with pytest.raises(ConfigError, match="image_root: no such folder"):
        run(moved, tokenizer, tmp_path / "new", image_root=str(tmp_path / "x"))
    plain = run(moved, tokenizer, tmp_path / "none", LENIENT)
    assert "image_root" not in plain.provenance.settings


def test_the_rest_of_a_broken_array_is_one_refusal(llava, tokenizer, tmp_path):
    llava.write_text(llava.read_text()[:-30])
    manifest = run(llava, tokenizer, tmp_path / "out")
    assert (manifest.totals.records, manifest.totals.rejected) == (4, 2)
    last = refused(tmp_path / "out")[-1]
    assert (last["where"], last["line"]) == (f"{llava}[5]", 5)
    assert f"{llava}[5]: the file ends before the array does." in last["reason"]


def test_a_changed_array_is_another_source(llava, tokenizer, tmp_path):
    run(llava, tokenizer, tmp_path / "out")
    llava.write_text(llava.read_text().replace("a red cat", "a cat"))
    with pytest.raises(DataError, match="encoded with source_digest"):
        run(llava, tokenizer, tmp_path / "out")


def test_a_second_run_does_nothing(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    assert len(before) == 5  # three shards, manifest, quarantine; no log files
    encoded = tokenizer.pictures
    run(source, tokenizer, tmp_path / "out")
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    assert tokenizer.pictures == encoded
    assert after == before


def test_a_broken_off_run_is_finished(source, tokenizer, tmp_path):
    class Stops(type(tokenizer)):
        def encode(self, pixels):
            if self.pictures:
                raise KeyboardInterrupt
            return super().encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(source, Stops(), tmp_path / "out")
    kept = (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns
    run(source, tokenizer, tmp_path / "out")
    run(source, tokenizer, tmp_path / "whole")
    assert (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns == kept
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_splits_are_selected(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out", splits=("test",))
    assert [row.key for row in read_shards(tmp_path / "out")] == ["d"]


def test_a_source_that_is_empty_after_filtering(source, tokenizer, tmp_path):
    source.write_text('{"text": "x", "split": "train"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl: no records of the splits val"):
        run(source, tokenizer, tmp_path / "out", splits=("val",))
    assert not (tmp_path / "out").exists()
    source.write_text("")
    with pytest.raises(DataError, match="contains no records"):
        run(source, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_failures_stop_the_run(source, tokenizer, tmp_path):
    words = r"out/rejected\.jsonl: 4 of 9 entries were refused, more than max_failures = 0\.3\."
    config = EncodeConfig(size=16, max_failures=0.3)
    for _ in range(2):  # another run says it again
        with pytest.raises(DataError, match=words):
            run(source, tokenizer, tmp_path / "out", config)
    assert len(refused(tmp_path / "out")) == 4
    with pytest.raises(DataError, match="encoding is not finished"):
        read_shards(tmp_path / "out")
    assert run(source, tokenizer, tmp_path / "out", LENIENT_ONE_SHARD).complete


LENIENT_ONE_SHARD = EncodeConfig(size=16, max_failures=1.0)


def test_too_many_failures_stop_it_early(source, tokenizer, tmp_path):
    good = json.dumps({"text": "fine"}) + "\n"
    source.write_text(good * 400 + "{\n" * 700 + good * 1000)
    config = EncodeConfig(size=16, shard_records=300, max_failures=0.5)
    words = "700 of 1200 entries were refused.* The first reason: .*records.jsonl:401: not valid"
    with pytest.raises(DataError, match=words):
        run(source, tokenizer, tmp_path / "out", config)
    assert len(list((tmp_path / "out").glob("shard-*"))) == 4


def test_another_tokenizer_is_refused(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    tokenizer.fingerprint = "other"
    with pytest.raises(DataError, match="fingerprint 'patches'.*'other'"):
        run(source, tokenizer, tmp_path / "out")


def test_sizes_are_kept_and_batches_have_one_size(source, tokenizer, tmp_path):
    lines = []
    for number, size in enumerate([(32, 32), (64, 32), (33, 31), (30, 66), (48, 24), (32, 33)]):
        name = f"{number}.png"
        Image.new("RGB", size, RED).save(source.parent / name)
        lines.append(json.dumps({"key": str(number), "image": name, "caption": "red"}) + "\n")
    source.write_text("".join(lines))
    buckets = BucketConfig(areas=(16 * 16, 32 * 32), ratios=("1:1", "2:1", "1:2"))
    config = EncodeConfig(buckets=buckets, batch_size=2)
    manifest = run(source, tokenizer, tmp_path / "out", config)
    grids = [row.image_codes[0].shape for row in read_shards(tmp_path / "out")]
    # 48 x 24 would be enlarged to 48 x 24 (rounded: 48 x 24), 33 x 31 to 32 x 32
    assert grids == [(4, 4), (3, 6), (2, 2), (6, 3), (3, 6), (4, 4)]
    assert tokenizer.batches == [(2, 3, 24, 48), (2, 3, 32, 32), (1, 3, 16, 16), (1, 3, 48, 24)]
    assert manifest.totals.sizes == {"4 x 4": 2, "6 x 3": 2, "2 x 2": 1, "3 x 6": 1}
    settings = manifest.provenance.settings
    assert settings["buckets.ratios"] == ["1:1", "2:1", "1:2"]
    assert "size" not in settings


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EncodeConfig(size=20), "size: 20 is no multiple of the tokenizer's factor 8. Take 16."),
        (
            EncodeConfig(buckets=BucketConfig(areas=(100,), ratios=("8:1",))),
            "buckets: 100 pixels at 8:1 are less than 8 pixels wide or high",
        ),
    ],
)
def test_sizes_must_fit_the_factor(source, tokenizer, tmp_path, config, words):
    with pytest.raises(ConfigError) as error:
        run(source, tokenizer, tmp_path / "out", config)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pictures_that_hold_their_bytes(source, tokenizer, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = source.parent / "p"
    names = ["red.png", "broken.png", "blue.png", "red.png"]
    table = {"image": [(folder / n).read_bytes() for n in names], "caption": names}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    run(tmp_path / "rows.parquet", tokenizer, tmp_path / "out")
    rows = list(read_shards(tmp_path / "out"))
    assert [row.captions[0] for row in rows] == ["red.png", "blue.png", "red.png"]
    reason = refused(tmp_path / "out")[0]["reason"]
    assert reason.startswith(f"{tmp_path}/rows.parquet[1]: picture: ")


def test_the_threads_of_torch_are_given_back(source, tokenizer, tmp_path):
    torch.set_num_threads(1)
    run(source, tokenizer, tmp_path / "out")
    assert torch.get_num_threads() == 1
