import json

import pytest

from liquidmm.data.records import ImageTextRecord, TextRecord
from liquidmm.data.sources import digest, entries, open_source, read_folder, read_jsonl
from liquidmm.errors import DataError


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
    (tmp_path / "f").mkdir()
    folder = digest(tmp_path / "f")
    (tmp_path / "f" / "a.png").write_bytes(b"x")
    assert digest(tmp_path / "f") != folder
