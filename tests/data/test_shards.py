import json

import numpy as np
import pytest

from liquidmm.data.manifest import Origin, Refusal, read_manifest
from liquidmm.data.records import Message
from liquidmm.data.shards import Row, ShardWriter, read_shards
from liquidmm.errors import DataError

ORIGIN = Origin(
    fingerprint="f00d",
    codebook_size=16,
    factor=8,
    source="r.jsonl",
    source_digest="d1",
    settings={"size": 32},
)
GRID = np.arange(6, dtype=np.uint16).reshape(2, 3)
ROWS = [
    Row(kind="text", key="t", source="s", license="MIT", text="hello"),
    Row(kind="image_text", key="i", captions=("a", "bc"), pictures=(GRID,)),
    Row(
        kind="chat",
        key="c",
        messages=(
            Message(role="user", content="<image> <image>"),
            Message(role="assistant", content="ok"),
        ),
        pictures=(GRID + 7, GRID.T.copy()),
    ),
]
REFUSAL = Refusal(source="r.jsonl", line=2, where="r.jsonl:2", reason="r.jsonl:2: bad")


def same(a: Row, b: Row) -> bool:
    fields = ("kind", "key", "source", "license", "text", "captions", "messages")
    return all(getattr(a, f) == getattr(b, f) for f in fields) and all(
        x.dtype == np.uint16 and np.array_equal(x, y)
        for x, y in zip(a.pictures, b.pictures, strict=True)
    )


def write(folder):
    writer = ShardWriter(folder, ORIGIN)
    writer.write(ROWS[:2], [REFUSAL])
    writer.write([], [])
    writer.write(ROWS[2:], [])
    return writer


def test_rows_come_back_in_order(tmp_path):
    write(tmp_path / "out").close()
    shards = read_shards(tmp_path / "out")
    assert len(shards) == 3
    assert all(same(a, b) for a, b in zip(shards, ROWS, strict=True))
    assert shards.of_kind("text", "chat") == [0, 2]
    with pytest.raises(IndexError):
        shards[3]


def test_manifest_and_quarantine(tmp_path):
    returned = write(tmp_path / "out").close()
    manifest = read_manifest(tmp_path / "out")
    assert manifest == returned
    assert manifest.origin == ORIGIN
    assert manifest.shards == tuple(f"shard-0000{n}.parquet" for n in range(3))
    totals = manifest.totals
    assert (totals.records, totals.refused, totals.pictures) == (3, 1, 3)
    assert totals.characters == {"chat": 17, "image_text": 3, "text": 5}
    assert totals.kinds == {"chat": 1, "image_text": 1, "text": 1}
    assert totals.licenses == {"": 2, "MIT": 1}
    assert totals.sizes == {"2 x 3": 1, "3 x 2": 2}
    line = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert line == {"source": "r.jsonl", "line": 2, "where": "r.jsonl:2", "reason": REFUSAL.reason}


def test_a_new_writer_finds_finished_shards(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(DataError, match="encoding was not finished"):
        read_shards(tmp_path / "out")
    again = ShardWriter(tmp_path / "out", ORIGIN)
    assert again.finished == 3
    again.close()
    assert len(read_shards(tmp_path / "out")) == 3
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "beef"}, "fingerprint 'f00d', now it is 'beef'"),
        ({"settings": {"size": 64}}, "settings.size 32, now it is 64"),
        ({"source_digest": "d2"}, "source_digest 'd1'"),
    ],
)
def test_another_origin_is_refused(tmp_path, change, words):
    write(tmp_path / "out").close()
    values = {name: getattr(ORIGIN, name) for name in ORIGIN.__slots__}
    with pytest.raises(DataError, match=words):
        ShardWriter(tmp_path / "out", Origin(**values | change))
    assert ShardWriter(tmp_path / "out", Origin(**values | {"source": "moved"})).finished == 3


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="not a folder of shards"):
        read_shards(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="schema version 99"):
        read_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_shards(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(DataError, match="holds other files"):
        ShardWriter(tmp_path / "other", ORIGIN)


def test_broken_shards(tmp_path):
    write(tmp_path / "out").close()
    (tmp_path / "out/shard-00001.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match="shard-00001"):
        read_shards(tmp_path / "out")
    with pytest.raises(DataError, match="shard-00001"):
        ShardWriter(tmp_path / "out", ORIGIN)


def test_codes_must_fit_the_codebook(tmp_path):
    writer = ShardWriter(tmp_path / "out", ORIGIN)
    row = Row(kind="image_text", key="big", captions=("a",), pictures=(GRID + 11,))
    with pytest.raises(DataError, match="big: code 16 with a codebook of 16"):
        writer.write([row], [])
    assert writer.finished == 0
