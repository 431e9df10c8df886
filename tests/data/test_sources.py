import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.data.records import ChatRecord, ImageTextRecord, Message, TextRecord
from liquidmm.data.sources import digest, entries, open_source, read_folder, read_jsonl
from liquidmm.errors import ConfigError, DataError

HELLO = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
LMSYS = [{"content": "Hi.", "role": "user"}, {"content": "Hello.", "role": "assistant"}]


def write_lines(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def test_jsonl_paths_are_relative_to_the_file(tmp_path):
    path = write_lines(
        tmp_path / "records.jsonl", {"text": "one"}, "", {"image": "p/a.png", "caption": "a"}
    )
    assert list(read_jsonl(path)) == [
        TextRecord(key=f"{path}:1", text="one"),
        ImageTextRecord(key=f"{path}:3", image=tmp_path / "p/a.png", captions=("a",)),
    ]


def test_entries_go_on_after_a_bad_line(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", {"text": "one"}, '{"text": "tw', {"text": 3}, "[1]")
    found = list(entries(path))
    assert [entry.where for entry in found] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [entry.record is not None for entry in found] == [True, False, False, False]
    assert "not valid JSON" in found[1].problem
    with pytest.raises(DataError, match=r"r\.jsonl:2: not valid JSON"):
        list(open_source(path))


def test_a_json_array_is_numbered_from_zero(tmp_path):
    path = tmp_path / "llava.json"
    shown = [{"from": "human", "value": "?\n<image>"}, {"from": "gpt", "value": "A cat."}]
    items = [
        {"id": "1", "image": "coco/a.jpg", "conversations": shown},
        {"id": "2", "conversations": [{"from": "human", "value": "Hi."}]},
        {"conversation_id": "3", "conversation": LMSYS},
        {"words": "?"},
        {"text": "one"},
    ]
    path.write_text("\n" + json.dumps(items, indent=2))
    found = list(entries(path))
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
        TextRecord(key=f"{path}[4]", text="one"),
    ]
    assert found[1].problem.startswith(f"{path}[1]: 'conversations' has no assistant turn")
    assert found[3].problem.startswith(f"{path}[3]: fits no layout (its keys: words). Known: ")
    (tmp_path / "pictures").mkdir()
    first = next(entries(path, tmp_path / "pictures"))
    assert first.record.images == (tmp_path / "pictures/coco/a.jpg",)


def test_a_json_file_of_lines_is_read_by_lines(tmp_path):
    for name in ("r.json", "r.jsonl", "r.ndjson"):
        path = write_lines(tmp_path / name, "", {"id": 7, "conversations": SHAREGPT})
        assert list(open_source(path)) == [ChatRecord(key="7", messages=HELLO)]
        assert next(entries(path)).line == 2


def test_a_broken_array_ends_the_run(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, {"text": "tw')
    found = entries(path)
    assert next(found).record == TextRecord(key=f"{path}[0]", text="one")
    with pytest.raises(DataError, match=r"a\.json\[1\]: the file ends before the array does"):
        next(found)


def test_parquet(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    rows = [
        {"conversation_id": "a", "conversation": LMSYS, "openai_moderation": [{"flagged": False}]},
        {"conversation_id": "b", "conversation": [{"content": None, "role": "user"}]},
        {"conversation_id": "c", "conversation": None},
        *({"conversation_id": f"d{n}", "conversation": LMSYS} for n in range(600)),
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=400)
    found = list(entries(path))
    assert len(found) == 603
    assert [found[n].record for n in (0, 602)] == [
        ChatRecord(key="a", messages=HELLO),
        ChatRecord(key="d599", messages=HELLO),
    ]
    assert (found[602].where, found[602].line) == (f"{path}[602]", 602)
    assert [entry.problem.partition(". ")[0] for entry in found[1:3]] == [
        f"{path}[1]: conversation[0]: 'content' must be a string (got nothing)",
        f"{path}[2]: fits no layout (its keys: conversation_id)",
    ]


def test_a_parquet_cell_that_is_empty_is_a_missing_key(tmp_path):
    path = tmp_path / "a.parquet"
    file = {"bytes": b"PNG", "path": None}
    shown = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"id": "1", "image": file, "conversations": shown, "license": "MIT"},
        {"id": "2", "image": None, "conversations": SHAREGPT, "license": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = open_source(path)
    assert (first.images, first.license) == ((b"PNG",), "MIT")
    assert second == ChatRecord(key="2", messages=HELLO)


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a\.parquet\[0\]: not readable as Parquet \(.*\)\. From"):
        list(entries(path))
    rows = [{"conversation_id": str(n), "conversation": LMSYS} for n in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500, compression="zstd")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    path.write_bytes(content)
    found = entries(path)
    assert next(found).record == ChatRecord(key="0", messages=HELLO)
    with pytest.raises(DataError, match=r"a\.parquet\[\d+\]: not readable as Parquet") as error:
        list(found)
    assert "\n" not in str(error.value)


def test_image_root_is_a_folder_for_files(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", {"image": "p/a.png", "caption": "a"})
    (tmp_path / "pictures").mkdir()
    entry = next(entries(path, tmp_path / "pictures"))
    assert entry.record.image == tmp_path / "pictures/p/a.png"
    with pytest.raises(ConfigError, match="^image_root: no such folder '.*none'. Correct the path"):
        entries(path, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^image_root: .* is a folder of pictures itself"):
        entries(tmp_path, tmp_path)


def test_folder_takes_captions_from_text_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.JPG"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.txt").write_text("a bee\n\na wasp\n")
    (tmp_path / "sub/a.txt").write_text("an ant")
    assert list(read_folder(tmp_path)) == [
        ImageTextRecord(key="b", image=tmp_path / "b.png", captions=("a bee", "a wasp")),
        ImageTextRecord(key="sub/a", image=tmp_path / "sub/a.JPG", captions=("an ant",)),
    ]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b\.png: no readable b\.txt"):
        list(read_folder(tmp_path))


def test_bad_places(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    for call, words in [
        (lambda: list(open_source(tmp_path / "none.jsonl")), "no such file or folder"),
        (lambda: list(open_source(tmp_path / "x.csv")), "unknown kind of source"),
        (lambda: list(read_folder(tmp_path / "empty")), "no pictures found"),
        (lambda: read_jsonl(tmp_path), "no such file"),
        (lambda: read_folder(tmp_path / "x.csv"), "no such folder"),
    ]:
        with pytest.raises(DataError, match=words):
            call()


def test_digest_follows_the_content(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", {"text": "one"})
    first = digest(path)
    assert digest(path) == first
    write_lines(path, {"text": "two"})
    assert digest(path) != first
    for name in ("a.json", "a.parquet"):
        (tmp_path / name).write_bytes(b"[]")
        first = digest(tmp_path / name)
        (tmp_path / name).write_bytes(b"[1]")
        assert digest(tmp_path / name) != first
    (tmp_path / "f").mkdir()
    folder = digest(tmp_path / "f")
    (tmp_path / "f" / "a.png").write_bytes(b"x")
    assert digest(tmp_path / "f") != folder
