import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.ipc as ipc
import pytest

from liquidmm.data.manifest import Provenance, RejectedSample, read_manifest
from liquidmm.data.records import Message
from liquidmm.data.shard_file import ROW_KINDS, Row, ShardFile, read_info, write_shard
from liquidmm.data.shard_folder import begin, finish, tally, write_quarantine
from liquidmm.data.shards import read_shards, validate
from liquidmm.errors import DataError

ORIGIN = Provenance(
    fingerprint="f00d",
    codebook_size=16,
    downsample_factor=8,
    source="r.jsonl",
    source_digest="d1",
    settings={"size": 32},
)
GRID = np.arange(6, dtype=np.uint16).reshape(2, 3)
ROWS = [
    Row(
        kind="chat",
        key="c",
        messages=(
            Message(role="user", content="<image> <image>"),
            Message(role="assistant", content="ok"),
        ),
        pictures=(GRID + 7, GRID.T.copy()),
    ),
    Row(kind="image_text", key="i", captions=("a", "bc"), pictures=(GRID,)),
    Row(kind="text", key="t", source="s", license="MIT", text="Grüße"),
    Row(kind="image_text", key="j", captions=("d",), pictures=(GRID + 1,)),
]
REFUSAL = RejectedSample(source="r.jsonl", line=2, where="r.jsonl:2", reason="r.jsonl:2: bad")
PARTS = (ROWS[:3], [], ROWS[3:])


def same(a: Row, b: Row) -> bool:
    fields = ("kind", "key", "source", "license", "text", "captions", "messages")
    return all(getattr(a, f) == getattr(b, f) for f in fields) and all(
        x.dtype == np.uint16 and np.array_equal(x, y)
        for x, y in zip(a.pictures, b.pictures, strict=True)
    )


def write(folder, numbers=(0, 1, 2)):
    for number in numbers:
        refusals = [REFUSAL] if number == 1 else []
        write_shard(folder, number, f"r.jsonl part {number}", PARTS[number], refusals, 16)


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    assert begin(out, ORIGIN, 3) == [0, 1, 2]
    write(out)
    finish(out, ORIGIN, 3)
    return out


def test_rows_come_back_grouped_by_kind(folder):
    shards = read_shards(folder)
    assert len(shards) == 4
    expected = [ROWS[2], ROWS[1], ROWS[0], ROWS[3]]
    assert all(same(a, b) for a, b in zip(shards, expected, strict=True))
    assert [[row.key for row in shards.of_kind(kind)] for kind in ROW_KINDS] == [
        ["t"],
        ["i", "j"],
        ["c"],
    ]
    for rows in (shards, shards.of_kind("image_text")):
        for index in (-1, len(rows)):
            with pytest.raises(IndexError, match=f"row {index} of {len(rows)}"):
                rows[index]


def test_files_are_opened_when_needed(folder, monkeypatch):
    opened = []
    first = ShardFile.__init__

    def note(self, path):
        opened.append(path.name)
        first(self, path)

    monkeypatch.setattr(ShardFile, "__init__", note)
    rows = read_shards(folder).of_kind("image_text")
    assert len(rows) == 2
    assert opened == []
    again = pickle.loads(pickle.dumps(rows))
    assert [rows[1].key, rows[1].key, again[1].key] == ["j"] * 3
    assert opened == ["shard-00002.arrow"] * 2


def test_codes_are_not_copied(folder):
    (codes,) = read_shards(folder).of_kind("image_text")[0].pictures
    assert not codes.flags.owndata
    assert not codes.flags.writeable


def test_bytes_of_a_picture(tmp_path):
    codes = np.random.default_rng(0).integers(0, 8192, (200, 32, 32)).astype(np.uint16)
    rows = [
        Row(kind="image_text", key=f"{n:06d}", captions=("c" * 40,), pictures=(grid,))
        for n, grid in enumerate(codes)
    ]
    each = write_shard(tmp_path, 0, "p", rows, [], 8192).stat().st_size / 200
    # codes, caption and key; offsets, names, size and checksum; 4 KB for the whole file
    assert each < 2048 + 40 + 6 + 75 + 4096 / 200


def test_equal_rows_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    for number in range(3):
        a, b = ((tmp_path / name / f"shard-0000{number}.arrow").read_bytes() for name in "ab")
        assert a == b


def test_manifest_and_quarantine(folder):
    manifest = read_manifest(folder)
    assert manifest == finish(folder, ORIGIN, 3)
    assert (manifest.origin, manifest.complete, manifest.parts) == (ORIGIN, True, 3)
    assert [shard.name for shard in manifest.shards] == [f"shard-0000{n}.arrow" for n in range(3)]
    assert manifest.shards[1].part == "r.jsonl part 1"
    assert manifest.columns["pictures"].endswith("codes: list<item: uint16>>>")
    totals = manifest.totals
    assert (totals.records, totals.refused, totals.pictures) == (4, 1, 4)
    assert totals.characters == {"chat": 17, "image_text": 4, "text": 5}
    assert totals.kinds == {"chat": 1, "image_text": 2, "text": 1}
    assert totals.licenses == {"": 3, "MIT": 1}
    assert totals.sizes == {"2 x 3": 1, "3 x 2": 3}
    line = json.loads((folder / "quarantine.jsonl").read_text())
    assert line == {"source": "r.jsonl", "line": 2, "where": "r.jsonl:2", "reason": REFUSAL.reason}


def test_shards_in_any_order_by_anyone(folder, tmp_path):
    out = tmp_path / "other"
    begin(out, ORIGIN, 3)
    write(out, [2])
    before = (out / "shard-00002.arrow").stat().st_mtime_ns
    (out / ".shard-00000.arrow.killed.arrow").write_bytes(b"half")
    assert begin(out, ORIGIN, 3) == [0, 1]
    assert tally(out).records == 1
    with pytest.raises(DataError, match=r"2 of 3 shards are missing, the first is shard-00000"):
        finish(out, ORIGIN, 3)
    with pytest.raises(DataError, match="encoding was not finished"):
        read_shards(out)
    write(out, [1, 0])
    assert len(write_quarantine(out).read_text().splitlines()) == 1
    assert finish(out, ORIGIN, 3) == finish(out, ORIGIN, 3) == read_manifest(folder)
    assert begin(out, ORIGIN, 3) == []
    assert (out / "shard-00002.arrow").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_finished_folder_that_lost_a_shard_is_open_again(folder):
    manifest = read_manifest(folder)
    (folder / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00000.arrow: is missing\. .*r\.jsonl part 0"):
        read_shards(folder)
    assert begin(folder, ORIGIN, 3) == [0]
    assert not read_manifest(folder).complete
    write(folder, [0])
    assert finish(folder, ORIGIN, 3) == manifest


@pytest.mark.parametrize(
    ("change", "parts", "words"),
    [
        ({"fingerprint": "beef"}, 3, "fingerprint 'f00d', now it is 'beef'"),
        ({"settings": {"size": 64}}, 3, "settings.size 32, now it is 64"),
        ({"source_digest": "d2"}, 3, "source_digest 'd1'"),
        ({}, 4, "begun with 3 parts, now there are 4"),
    ],
)
def test_another_origin_is_refused(folder, change, parts, words):
    for act in (begin, finish):
        with pytest.raises(DataError, match=words):
            act(folder, replace(ORIGIN, **change), parts)
    assert begin(folder, replace(ORIGIN, source="moved"), 3) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "version 1, this program reads 2. Encode the source again"),
        ("{", "is not JSON"),
    ],
)
def test_bad_manifests(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    for act in (read_shards, lambda path: begin(path, ORIGIN, 3)):
        with pytest.raises(DataError, match=words):
            act(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="not a folder of shards"):
        read_shards(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="holds other files"):
        begin(tmp_path, ORIGIN, 3)


def test_files_that_are_no_shards(folder, tmp_path):
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"shard-00000.arrow: has {len(whole) - 9} bytes"):
        read_shards(folder)
    with pytest.raises(DataError, match="shard-00000.arrow: missing or not a shard"):
        tally(folder)
    other = tmp_path / "other.arrow"
    with ipc.new_file(str(other), ipc.open_file(folder / "shard-00001.arrow").schema.remove(0)):
        pass
    with pytest.raises(DataError, match="other.arrow: missing or not a shard"):
        ShardFile(other)
    with pytest.raises(DataError, match="nowhere: missing or not a shard"):
        read_info(tmp_path / "nowhere")


def test_every_flipped_bit_is_named_with_its_part(folder):
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    assert [problem for _, problem in validate(folder)] == ["", "", ""]
    for place in np.random.default_rng(0).integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        first, *others = [problem for _, problem in validate(folder)]
        assert first.startswith(f"{path}: has SHA-256 ")
        assert "It was made from r.jsonl part 0: remove it" in first
        assert others == ["", ""]


def test_a_flipped_bit_is_found_while_reading(folder):
    """Wherever it is: the row is refused, or it is the row that was written."""
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.unlink()  # what is mapped must not change
        path.write_bytes(damaged)
        for index, row in enumerate((ROWS[2], ROWS[1], ROWS[0])):
            try:
                assert same(read_shards(folder)[index], row)
            except DataError as error:
                found += "shard-00000.arrow: " in str(error)
    assert found > len(whole) / 11 / 8


def test_codes_must_fit_the_codebook(tmp_path):
    row = Row(kind="image_text", key="big", captions=("a",), pictures=(GRID + 11,))
    with pytest.raises(DataError, match="big: code 16 with a codebook of 16"):
        write_shard(tmp_path, 0, "p", [row], [], 16)
    assert list(tmp_path.iterdir()) == []
