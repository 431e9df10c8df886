import gzip
import io
import json
import lzma
import pickle
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.config import from_dict, to_dict
from liquidmm.data.readers import (
    Chunk,
    Fields,
    SourceConfig,
    digest,
    json_array,
    jsonl,
    list_chunks,
    read_chunk,
    read_jsonl,
    read_records,
)
from liquidmm.data.records import ChatRecord, ImageTextRecord, Message, TextRecord
from liquidmm.errors import ConfigError, DataError

HELLO = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
LMSYS = [{"content": "Hi.", "role": "user"}, {"content": "Hello.", "role": "assistant"}]


def test_jsonl_paths_are_relative_to_the_file(tmp_path, write_lines):
    path = write_lines(
        tmp_path / "records.jsonl", {"text": "one"}, "", {"image": "p/a.png", "caption": "a"}
    )
    assert list(read_jsonl(path)) == [
        TextRecord(key=f"{path}:1", text="one"),
        ImageTextRecord(key=f"{path}:3", image=tmp_path / "p/a.png", captions=("a",)),
    ]


def test_entries_go_on_after_a_bad_line(tmp_path, write_lines, read):
    path = write_lines(tmp_path / "r.jsonl", {"text": "one"}, '{"text": "tw', {"text": 3}, "[1]")
    found = read(path)
    assert [entry.where for entry in found] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [entry.record is not None for entry in found] == [True, False, False, False]
    assert "not valid JSON" in found[1].problem
    with pytest.raises(DataError, match=r"r\.jsonl:2: not valid JSON"):
        list(read_records(SourceConfig(path=str(path))))


def test_a_json_array_is_numbered_from_zero(tmp_path, read):
    path = tmp_path / "llava.json"
    shown = [{"from": "human", "value": "?\n<image>"}, {"from": "gpt", "value": "A cat."}]
    items = [
        {"id": "1", "image": "coco/a.jpg", "conversations": shown},
        {"id": "2", "conversations": [{"from": "human", "value": "Hi."}]},
        {"conversation_id": "3", "conversation": LMSYS},
        {"words": "?"},
        {"text": "öne", "license": None},
    ]
    path.write_text("\n" + json.dumps(items, indent=2, ensure_ascii=False))
    found = read(path)
    assert [entry.where for entry in found] == [f"{path}[{n}]" for n in range(5)]
    assert [entry.line for entry in found] == [0, 1, 2, 3, 4]
    assert [entry.record for entry in found] == [
        ChatRecord(
            key="1",
            messages=(
                Message(role="user", content="?\n<image>"),
                Message(role="assistant", content="A cat."),
            ),
            images=(tmp_path / "coco/a.jpg",),
        ),
        None,
        ChatRecord(key="3", messages=HELLO),
        None,
        TextRecord(key=f"{path}[4]", text="öne"),
    ]
    assert found[1].problem.startswith(f"{path}[1]: 'conversations' has no assistant turn")
    assert found[3].problem.startswith(f"{path}[3]: fits no layout (its keys: words). Known: ")
    (tmp_path / "pictures").mkdir()
    first = read(path, image_root=str(tmp_path / "pictures"))[0]
    assert first.record.images == (tmp_path / "pictures/coco/a.jpg",)


def test_a_json_file_of_lines_is_read_by_lines(tmp_path, write_lines, read):
    for name in ("r.json", "r.jsonl", "r.ndjson"):
        path = write_lines(tmp_path / name, "", {"id": 7, "conversations": SHAREGPT})
        (entry,) = read(path)
        assert (entry.record, entry.line) == (ChatRecord(key="7", messages=HELLO), 2)


def test_what_follows_a_break_in_an_array_is_one_refusal(tmp_path, read):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, {"text": "two"}, {"text": "thr')
    first, second, last = read(path)
    assert (first.record.text, second.record.text) == ("one", "two")
    assert (last.broken, last.line, last.record) == (True, 2, None)
    assert last.problem == (
        f"{path}[2]: the file ends before the array does. From here on the file can't be read; "
        "mend it or download it again."
    )
    path.write_bytes(b'[{"text": "one"}, {"text": "tw\xf6"}, {"text": "three"}]')
    first, second, last = read(path)
    assert (first.record.text, last.record.text) == ("one", "three")
    assert second.problem.startswith(f"{path}[1]: 'text' is not UTF-8 (byte 0xf6 at 2).")


def test_image_root_is_a_folder_for_files(tmp_path, write_lines, read):
    path = write_lines(tmp_path / "r.jsonl", {"image": "p/a.png", "caption": "a"})
    (tmp_path / "pictures").mkdir()
    (entry,) = read(path, image_root=str(tmp_path / "pictures"))
    assert entry.record.image == tmp_path / "pictures/p/a.png"
    (entry,) = read(path, image_root="s3://bucket/pictures/")
    assert entry.record.image == "s3://bucket/pictures/p/a.png"
    with pytest.raises(ConfigError, match="^image_root: no such folder '.*none'. Correct the path"):
        read(path, image_root=str(tmp_path / "none"))
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"^image_root: .* is a folder of pictures itself"):
        read(tmp_path / "pictures", image_root=str(tmp_path))


def test_parts_are_small_and_travel(tmp_path, write_lines):
    path = write_lines(tmp_path / "r.jsonl", *({"text": str(n)} for n in range(10)))
    config = SourceConfig(path=str(path))
    found = list_chunks(config, 4)
    assert [part.name for part in found] == [f"{path}:1-4", f"{path}:5-8", f"{path}:9-10"]
    assert [part.count for part in found] == [4, 4, 2]
    assert list_chunks(config, 4) == found
    for part in found:
        assert pickle.loads(pickle.dumps(part)) == part
        assert from_dict(Chunk, json.loads(json.dumps(to_dict(part))), "part") == part
    assert from_dict(SourceConfig, to_dict(config), "run") == config


def test_small_files_share_a_part(tmp_path, write_lines, read):
    for name in "cab":
        write_lines(tmp_path / f"{name}.jsonl", {"text": f"{name}1"}, {"text": f"{name}2"})
    found = read(tmp_path / "*.jsonl")
    assert [entry.record.text for entry in found] == ["a1", "a2", "b1", "b2", "c1", "c2"]
    config = SourceConfig(path=str(tmp_path / "*.jsonl"))
    cut = list_chunks(config, 4)
    assert [part.count for part in cut] == [4, 2]
    assert cut[0].name == f"{tmp_path}/a.jsonl:1-2 to {tmp_path}/b.jsonl:1-2"
    (entry, *_) = read(tmp_path / "{b,a}.jsonl")
    assert entry.record.text == "b1"
    several = SourceConfig(path=(str(tmp_path / "c.jsonl"), str(tmp_path / "a.jsonl")))
    assert [record.text for record in read_records(several)] == ["c1", "c2", "a1", "a2"]


def test_names_of_fields_come_from_the_run_file(tmp_path, write_lines, read):
    row = {
        "no": 7,
        "jpg": "a.jpg",
        "blip": "a cat",
        "alt": ["cat", "tabby"],
        "meta": {"set": "coco", "licences": ["MIT", "CC-BY-4.0"]},
        "text": "a document?",
    }
    path = write_lines(tmp_path / "r.jsonl", row, {"text": "x"})
    fields = Fields(
        key="no",
        image="jpg",
        captions=("blip", "alt"),
        source="meta.set",
        license="meta.licences",
    )
    first, second = read(path, fields=fields, name="other", license="CC0-1.0", split="train")
    assert first.record == ImageTextRecord(
        key="7",
        image=tmp_path / "a.jpg",
        captions=("a cat", "cat", "tabby"),
        source="coco",
        license="MIT AND CC-BY-4.0",
        split="train",
    )
    assert second.record == TextRecord(
        key=f"{path}:2", text="x", source="other", license="CC0-1.0", split="train"
    )
    # text alone makes documents of everything
    found = read(path, fields=Fields(text="alt"))
    assert "'text' must be a string (got list" in found[0].problem
    assert "fits no layout" in found[1].problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"fields": Fields(image="img")},
            "fields.image: {path} has no field 'img'. It has: blip, meta, picture.",
        ),
        (
            {"fields": Fields(image="pictures", captions="blip")},
            (
                "fields.image: {path} has no field 'pictures'. It has: blip, meta, picture. "
                "Did you mean 'picture'?"
            ),
        ),
        (
            {"fields": Fields(image="picture", captions=("blip", "meta.alt"))},
            (
                "fields.captions: {path} has no field 'meta.alt'. It has: blip, meta, picture. "
                "Did you mean 'meta.set'?"
            ),
        ),
        (
            {},
            (
                "layout: {path} has none of the fields messages, conversations, conversation, "
                "image, text, img_path, content. It has: blip, meta, picture. Name them in "
                "'fields', such as fields.image and fields.captions."
            ),
        ),
        (
            {"layout": "journeydb"},
            (
                "layout: {path} has none of the fields img_path. It has: blip, meta, picture. Name "
                "them in 'fields', such as fields.image and fields.captions."
            ),
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_wrong_fields_are_found_before_anything_is_read(tmp_path, values, message, suffix):
    rows = [{"picture": "a.png", "blip": "a", "meta": {"set": "coco"}}] * 3
    path = tmp_path / f"r{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError) as error:
        list_chunks(SourceConfig(path=str(path), **values), 2)
    assert str(error.value) == message.format(path=path)


def test_splits_are_selected_and_refused_entries_always_count(tmp_path, write_lines, read):
    rows = [{"text": str(n), "split": split} for n, split in enumerate(["a", "b", "a", ""])]
    path = write_lines(tmp_path / "r.jsonl", *rows, {"text": 5, "split": "a"})
    found = read(path, splits=("b",))
    assert [entry.line for entry in found] == [2, 5]
    found = read(path, splits=("b",), split="b")
    assert [entry.line for entry in found] == [2, 4, 5]


def test_bad_places(tmp_path, write_lines):
    (tmp_path / "x.csvx").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.json").write_text(" [ ]\n")
    write_lines(tmp_path / "r.jsonl", {"text": "one"})
    write_lines(tmp_path / "s.json", [{"text": "one"}])
    for name, words in [
        ("none.jsonl", "none.jsonl: there is no '.*none.jsonl'. Correct the path."),
        ("n*.jsonl", r"nothing matches '.*n\*.jsonl'. Correct the path."),
        ("{a..b}.jsonl", "'{a..b}' is no range"),
        ("{9..1}.jsonl", "'{9..1}' names -7 files"),
        ("{r,t}.jsonl", "there is no '.*t.jsonl'"),
        ("x.csvx", "unknown kind of source. Give a folder, or files of these kinds: .jsonl"),
        ("empty", "holds no entries"),
        ("empty.jsonl", "holds no entries"),
        ("empty.json", "holds no entries"),
        ("[rs].json*", "s.json: is json, but .*r.jsonl is jsonl. Encode them apart."),
    ]:
        with pytest.raises(DataError, match=words):
            list_chunks(SourceConfig(path=str(tmp_path / name)), 10)
    for values, words in [
        ({"path": ""}, "^path: is empty"),
        ({"path": ()}, "^path: is empty"),
        ({"path": "nope://x/y.jsonl"}, "^nope://: unknown kind of URL"),
        ({"path": str(tmp_path / "r.jsonl"), "format": "folder"}, "but .*r.jsonl is a file"),
    ]:
        with pytest.raises(ConfigError, match=words):
            list_chunks(SourceConfig(**values), 10)
    with pytest.raises(DataError, match="empty: holds no files of the format 'csv'. Check"):
        list_chunks(SourceConfig(path=str(tmp_path / "empty"), format="csv"), 10)
    with pytest.raises(ConfigError, match="records: is 0"):
        list_chunks(SourceConfig(path=str(tmp_path / "r.jsonl")), 0)
    with pytest.raises(ConfigError, match="captions: is empty"):
        Fields(captions=())


def test_digest_follows_the_content(tmp_path, write_lines):
    path = write_lines(tmp_path / "r.jsonl", {"text": "one"})
    config = SourceConfig(path=str(path))
    first = digest(config)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert digest(SourceConfig(path=str(copy))) == first
    write_lines(path, {"text": "two"})
    assert digest(config) != first
    both = SourceConfig(path=str(tmp_path / "*.jsonl"))
    first = digest(both)
    (tmp_path / "b.jsonl").write_text("")
    assert digest(both) == first
    (tmp_path / "b.jsonl").write_text("\n")
    assert digest(both) != first
    (tmp_path / "f/g").mkdir(parents=True)
    folder = SourceConfig(path=str(tmp_path / "f"))
    before = digest(folder)
    (tmp_path / "f/g/a.png").write_bytes(b"x")
    after = digest(folder)
    (tmp_path / "f/g/a.png").rename(tmp_path / "f/g/b.png")
    assert len({before, after, digest(folder)}) == 3


def tarred(count):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(count):
            for name, content in ((f"{number}.jpg", b"J" * 600), (f"{number}.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


LINE = json.dumps({"text": "word " * 100})
GROWING = {
    "a.jsonl": lambda count: f"{LINE}\n".encode() * count,
    "a.jsonl.gz": lambda count: gzip.compress(f"{LINE}\n".encode() * count, 1),
    "a.jsonl.xz": lambda count: lzma.compress(f"{LINE}\n".encode() * count, preset=0),
    "a.json": lambda count: f"[{','.join([LINE] * count)}]".encode(),
    "a.csv": lambda count: b"text\n" + b"word " * 100 + (b"\n" + b"word " * 100) * count,
    "a.tar": tarred,
}


@pytest.mark.parametrize("name", GROWING)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(jsonl, "_CHUNK", 2**14)
    monkeypatch.setattr(json_array, "CHUNK", 2**14)
    path = tmp_path / name
    config = SourceConfig(path=str(path))
    peaks = []
    for count in (300, 300, 1200):  # the first fills the caches of the libraries
        path.write_bytes(GROWING[name](count))
        tracemalloc.start()
        found = sum(1 for part in list_chunks(config, 50) for _ in read_chunk(config, part))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found >= count
    assert peaks[2] < peaks[1] + 60_000  # of 600 kB more
