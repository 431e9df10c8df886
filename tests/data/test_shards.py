import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.ipc as ipc
import pytest

from liquidmm.data.manifest import Provenance, RejectedSample, read_manifest
from liquidmm.data.records import Message
from liquidmm.data.samples import SAMPLE_KINDS, Sample
from liquidmm.data.shard_writer import (
    begin,
    count_records,
    finish,
    write_rejected,
    write_shard,
)
from liquidmm.data.shards import ShardFile, read_info, read_shards, verify
from liquidmm.errors import DataError

PROVENANCE = Provenance(
    fingerprint="f00d",
    codebook_size=16,
    downsample_factor=8,
    source="r.jsonl",
    source_digest="d1",
    settings={"size": 32},
)
GRID = np.arange(6, dtype=np.uint16).reshape(2, 3)
SAMPLES = [
    Sample(
        kind="chat",
        key="c",
        messages=(
            Message(role="user", content="<image> <image>"),
            Message(role="assistant", content="ok"),
        ),
        image_codes=(GRID + 7, GRID.T.copy()),
    ),
    Sample(kind="image_text", key="i", captions=("a", "bc"), image_codes=(GRID,)),
    Sample(kind="text", key="t", source="s", license="MIT", text="Grüße"),
    Sample(kind="image_text", key="j", captions=("d",), image_codes=(GRID + 1,)),
]
REJECTED = RejectedSample(source="r.jsonl", line=2, where="r.jsonl:2", reason="r.jsonl:2: bad")
CHUNKS = (SAMPLES[:3], [], SAMPLES[3:])


def same(a: Sample, b: Sample) -> bool:
    fields = ("kind", "key", "source", "license", "text", "captions", "messages")
    return all(getattr(a, f) == getattr(b, f) for f in fields) and all(
        x.dtype == np.uint16 and np.array_equal(x, y)
        for x, y in zip(a.image_codes, b.image_codes, strict=True)
    )


def write(folder, numbers=(0, 1, 2)):
    for number in numbers:
        rejected = [REJECTED] if number == 1 else []
        write_shard(folder, number, f"r.jsonl chunk {number}", CHUNKS[number], rejected, 16)


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    assert begin(out, PROVENANCE, 3) == [0, 1, 2]
    write(out)
    finish(out, PROVENANCE, 3)
    return out


def test_shards_return_samples_grouped_by_kind(folder):
    shards = read_shards(folder)
    assert len(shards) == 4
    expected = [SAMPLES[2], SAMPLES[1], SAMPLES[0], SAMPLES[3]]
    assert all(same(a, b) for a, b in zip(shards, expected, strict=True))
    assert [[sample.key for sample in shards.of_kind(kind)] for kind in SAMPLE_KINDS] == [
        ["t"],
        ["i", "j"],
        ["c"],
    ]
    for view in (shards, shards.of_kind("image_text")):
        for index in (-1, len(view)):
            with pytest.raises(IndexError, match=f"sample {index} of {len(view)}"):
                view[index]


def test_shards_open_files_when_needed(folder):
    shards = read_shards(folder)
    view = shards.of_kind("image_text")
    assert len(view) == 2
    assert shards.file.cache_info().currsize == 0
    assert [view[1].key, view[1].key] == ["j", "j"]
    assert shards.file.cache_info().currsize == 1


def test_shards_can_be_pickled_with_open_files(folder):
    view = read_shards(folder).of_kind("image_text")
    assert [sample.key for sample in view] == ["i", "j"]
    again = pickle.loads(pickle.dumps(view))
    assert [sample.key for sample in again] == ["i", "j"]


def test_sample_codes_are_not_copied(folder):
    (codes,) = read_shards(folder).of_kind("image_text")[0].image_codes
    assert not codes.flags.owndata
    assert not codes.flags.writeable


def test_shard_size_of_an_image_is_bounded(tmp_path):
    codes = np.random.default_rng(0).integers(0, 8192, (200, 32, 32)).astype(np.uint16)
    samples = [
        Sample(kind="image_text", key=f"{n:06d}", captions=("c" * 40,), image_codes=(grid,))
        for n, grid in enumerate(codes)
    ]
    each = write_shard(tmp_path, 0, "p", samples, [], 8192).stat().st_size / 200
    # codes, caption and key; offsets, names, size and checksum; 4 KB for the whole file
    assert each < 2048 + 40 + 6 + 75 + 4096 / 200


def test_shard_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    for number in range(3):
        a, b = ((tmp_path / name / f"shard-0000{number}.arrow").read_bytes() for name in "ab")
        assert a == b


def test_finish_writes_manifest_and_rejected(folder):
    manifest = read_manifest(folder)
    assert manifest == finish(folder, PROVENANCE, 3)
    assert (manifest.provenance, manifest.complete, manifest.num_chunks) == (PROVENANCE, True, 3)
    assert [shard.name for shard in manifest.shards] == [f"shard-0000{n}.arrow" for n in range(3)]
    assert manifest.shards[1].chunk == "r.jsonl chunk 1"
    assert manifest.columns["image_codes"].endswith("codes: list<item: uint16>>>")
    totals = manifest.totals
    assert (totals.records, totals.rejected, totals.images) == (4, 1, 4)
    assert totals.characters == {"chat": 17, "image_text": 4, "text": 5}
    assert totals.kinds == {"chat": 1, "image_text": 2, "text": 1}
    assert totals.licenses == {"": 3, "MIT": 1}
    assert totals.sizes == {"2 x 3": 1, "3 x 2": 3}
    line = json.loads((folder / "rejected.jsonl").read_text())
    assert line == {"source": "r.jsonl", "line": 2, "where": "r.jsonl:2", "reason": REJECTED.reason}


def test_shards_can_be_written_in_any_order(folder, tmp_path):
    out = tmp_path / "other"
    begin(out, PROVENANCE, 3)
    write(out, [2])
    before = (out / "shard-00002.arrow").stat().st_mtime_ns
    (out / ".shard-00000.arrow.killed.arrow").write_bytes(b"half")
    assert begin(out, PROVENANCE, 3) == [0, 1]
    assert count_records(out).records == 1
    with pytest.raises(DataError, match=r"2 of 3 shards.*shard-00000"):
        finish(out, PROVENANCE, 3)
    with pytest.raises(DataError, match="encoding is not finished"):
        read_shards(out)
    write(out, [1, 0])
    assert len(write_rejected(out).read_text().splitlines()) == 1
    assert finish(out, PROVENANCE, 3) == finish(out, PROVENANCE, 3) == read_manifest(folder)
    assert begin(out, PROVENANCE, 3) == []
    assert (out / "shard-00002.arrow").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_begin_reopens_a_folder_that_lost_a_shard(folder):
    manifest = read_manifest(folder)
    (folder / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00000.arrow: is missing\. .*r\.jsonl chunk 0"):
        read_shards(folder)
    assert begin(folder, PROVENANCE, 3) == [0]
    assert not read_manifest(folder).complete
    write(folder, [0])
    assert finish(folder, PROVENANCE, 3) == manifest


@pytest.mark.parametrize(
    ("change", "num_chunks", "words"),
    [
        ({"fingerprint": "beef"}, 3, "fingerprint 'f00d'.*'beef'"),
        ({"settings": {"size": 64}}, 3, "settings.size 32.*64"),
        ({"source_digest": "d2"}, 3, "source_digest 'd1'"),
        ({}, 4, "num_chunks 3.*4"),
    ],
)
def test_begin_other_provenance_is_rejected(folder, change, num_chunks, words):
    for act in (begin, finish):
        with pytest.raises(DataError, match=words):
            act(folder, replace(PROVENANCE, **change), num_chunks)
    assert begin(folder, replace(PROVENANCE, source="moved"), 3) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema_version": 99}', r"version 3.*99"),
        ('{"schema_version": 1}', "version 3.*1.*encode the source again"),
        ("{", "invalid JSON"),
    ],
)
def test_bad_manifest_is_rejected(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    for act in (read_shards, lambda path: begin(path, PROVENANCE, 3)):
        with pytest.raises(DataError, match=words):
            act(tmp_path)


def test_bad_folder_is_rejected(tmp_path):
    with pytest.raises(DataError, match="not a folder of shards"):
        read_shards(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="contains other files"):
        begin(tmp_path, PROVENANCE, 3)


def test_bad_shard_is_rejected(folder, tmp_path):
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"shard-00000.arrow: has {len(whole) - 9} bytes"):
        read_shards(folder)
    with pytest.raises(DataError, match="shard-00000.arrow: missing or not a shard"):
        count_records(folder)
    other = tmp_path / "other.arrow"
    with ipc.new_file(str(other), ipc.open_file(folder / "shard-00001.arrow").schema.remove(0)):
        pass
    with pytest.raises(DataError, match="other.arrow: missing or not a shard"):
        ShardFile(other)
    with pytest.raises(DataError, match="nowhere: missing or not a shard"):
        read_info(tmp_path / "nowhere")


def test_verify_names_every_damaged_shard_and_its_chunk(folder):
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    assert [problem for _, problem in verify(folder)] == ["", "", ""]
    for place in np.random.default_rng(0).integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        first, *others = [problem for _, problem in verify(folder)]
        assert first.startswith(f"{path}: has SHA-256 ")
        assert "It was made from r.jsonl chunk 0: remove it" in first
        assert others == ["", ""]


def test_read_damaged_sample_is_rejected(folder):
    """Wherever the flipped bit is, reading fails or returns the sample that was written."""
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.unlink()  # what is mapped must not change
        path.write_bytes(damaged)
        for index, sample in enumerate((SAMPLES[2], SAMPLES[1], SAMPLES[0])):
            try:
                assert same(read_shards(folder)[index], sample)
            except DataError as error:
                found += "shard-00000.arrow: " in str(error)
    assert found > len(whole) / 11 / 8


def test_write_shard_code_outside_codebook_is_rejected(tmp_path):
    sample = Sample(kind="image_text", key="big", captions=("a",), image_codes=(GRID + 11,))
    with pytest.raises(DataError, match=r"big: code 16 .*16"):
        write_shard(tmp_path, 0, "p", [sample], [], 16)
    assert list(tmp_path.iterdir()) == []
