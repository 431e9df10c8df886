import gzip
import io
import json
import lzma
import tarfile
import tracemalloc

import pytest

from liquidmm.data.readers import (
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


def test_read_jsonl_paths_relative_to_file(tmp_path, write_lines):
    path = write_lines(
        tmp_path / "records.jsonl", {"text": "one"}, "", {"image": "p/a.png", "caption": "a"}
    )
    assert list(read_jsonl(path)) == [
        TextRecord(key=f"{path}:1", text="one"),
        ImageTextRecord(key=f"{path}:3", image=tmp_path / "p/a.png", captions=("a",)),
    ]


def test_read_chunk_continues_after_bad_line(tmp_path, write_lines, read):
    path = write_lines(tmp_path / "r.jsonl", {"text": "one"}, '{"text": "tw', {"text": 3}, "[1]")
    found = read(path)
    assert [item.where for item in found] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [item.record is not None for item in found] == [True, False, False, False]
    assert "not valid JSON" in found[1].problem
    with pytest.raises(DataError, match=r"r\.jsonl:2: not valid JSON"):
        list(read_records(SourceConfig(path=str(path))))


def test_read_json_array_numbered_from_zero(tmp_path, read, check_problems):
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
    assert [item.where for item in found] == [f"{path}[{n}]" for n in range(5)]
    assert [item.line for item in found] == [0, 1, 2, 3, 4]
    assert [item.record for item in found] == [
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
    check_problems(
        found,
        r"json\[1\]: .*conversations.* no assistant",
        r"json\[3\]: .*its keys: words.*Known: ",
    )
    (tmp_path / "images").mkdir()
    first = read(path, image_root=str(tmp_path / "images"))[0]
    assert first.record.images == (tmp_path / "images/coco/a.jpg",)


def test_read_json_file_of_lines_by_line(tmp_path, write_lines, read):
    for name in ("r.json", "r.jsonl", "r.ndjson"):
        path = write_lines(tmp_path / name, "", {"id": 7, "conversations": SHAREGPT})
        (item,) = read(path)
        assert (item.record, item.line) == (ChatRecord(key="7", messages=HELLO), 2)


def test_read_broken_array_rest_rejected_once(tmp_path, read, check_problems):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, {"text": "two"}, {"text": "thr')
    first, second, last = read(path)
    assert (first.record.text, second.record.text) == ("one", "two")
    assert (last.rest_lost, last.line, last.record) == (True, 2, None)
    check_problems([last], r"a\.json\[2\]: the file ends before the array does.* rest of the file")
    path.write_bytes(b'[{"text": "one"}, {"text": "tw\xf6"}, {"text": "three"}]')
    first, second, last = read(path)
    assert (first.record.text, last.record.text) == ("one", "three")
    check_problems([second], r"a\.json\[1\]: .*text.*UTF-8.*0xf6 at 2")


def test_image_root_replaces_folder_of_file(tmp_path, write_lines, read):
    path = write_lines(tmp_path / "r.jsonl", {"image": "p/a.png", "caption": "a"})
    (tmp_path / "images").mkdir()
    (item,) = read(path, image_root=str(tmp_path / "images"))
    assert item.record.image == tmp_path / "images/p/a.png"
    (item,) = read(path, image_root="s3://bucket/images/")
    assert item.record.image == "s3://bucket/images/p/a.png"
    with pytest.raises(ConfigError, match="^image_root: no such folder '.*none'. Correct the path"):
        read(path, image_root=str(tmp_path / "none"))
    (tmp_path / "images/a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"^image_root: .*folder of images.*images"):
        read(tmp_path / "images", image_root=str(tmp_path))


def test_list_chunks_bad_path_or_setting_rejected(tmp_path, write_lines):
    (tmp_path / "x.csvx").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.json").write_text(" [ ]\n")
    write_lines(tmp_path / "r.jsonl", {"text": "one"})
    write_lines(tmp_path / "s.json", [{"text": "one"}])
    for name, words in [
        ("none.jsonl", "none.jsonl: no such file .*none.jsonl'. Correct the path."),
        ("n*.jsonl", r"no file matches '.*n\*.jsonl'. Correct the path."),
        ("{a..b}.jsonl", "got '{a..b}'"),
        ("{9..1}.jsonl", "'{9..1}' names -7"),
        ("{r,t}.jsonl", "no such file .*t.jsonl'"),
        ("x.csvx", "x.csvx: unknown format.* .jsonl"),
        ("empty", "contains no records"),
        ("empty.jsonl", "contains no records"),
        ("empty.json", "contains no records"),
        ("[rs].json*", "s.json: .* json, .*r.jsonl is jsonl"),
    ]:
        with pytest.raises(DataError, match=words):
            list_chunks(SourceConfig(path=str(tmp_path / name)), 10)
    for values, words in [
        ({"path": ""}, "^path: is empty"),
        ({"path": ()}, "^path: is empty"),
        ({"path": "nope://x/y.jsonl"}, "^nope://: unknown protocol"),
        ({"path": str(tmp_path / "r.jsonl"), "format": "folder"}, "format: .*folder.*r.jsonl"),
    ]:
        with pytest.raises(ConfigError, match=words):
            list_chunks(SourceConfig(**values), 10)
    with pytest.raises(DataError, match="empty: contains no files of the format 'csv'"):
        list_chunks(SourceConfig(path=str(tmp_path / "empty"), format="csv"), 10)
    with pytest.raises(ConfigError, match="records: .*got 0"):
        list_chunks(SourceConfig(path=str(tmp_path / "r.jsonl")), 0)
    with pytest.raises(ConfigError, match="captions: is empty"):
        Fields(captions=())


def test_digest_follows_content(tmp_path, write_lines):
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
def test_read_chunk_memory_independent_of_file_size(tmp_path, monkeypatch, name):
    monkeypatch.setattr(jsonl, "READ_BYTES", 2**14)
    monkeypatch.setattr(json_array, "READ_BYTES", 2**14)
    path = tmp_path / name
    config = SourceConfig(path=str(path))
    peaks = []
    for count in (300, 300, 1200):  # the first fills the caches of the libraries
        path.write_bytes(GROWING[name](count))
        tracemalloc.start()
        found = sum(1 for chunk in list_chunks(config, 50) for _ in read_chunk(config, chunk))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found >= count
    assert peaks[2] < peaks[1] + 60_000  # of 600 kB more
