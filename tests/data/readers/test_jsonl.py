import json

import pytest

from liquidmm.data.readers import SourceConfig, jsonl, list_chunks, read_chunk


def test_lines_of_every_kind(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n'
        b"\r\n"
        b'{"text": "tw\xf6"}\n'
        b'{"text": "three", "source": null}\n'
        b"   \n"
        b'{"text": NaN}\n'
        b'{"text": "\\ud83d"}\n'
        b'"text"\n'
        b"["
    )
    found = read(path)
    assert [entry.line for entry in found] == [1, 3, 4, 6, 7, 8, 9]
    assert [entry.record.text for entry in found if entry.record] == ["one", "three"]
    assert [entry.problem.removeprefix(f"{path}:") for entry in found if not entry.record] == [
        "3: not UTF-8 (invalid start byte at byte 12). Save it as UTF-8.",
        "6: 'text' must be a string (got float nan). Correct the record.",
        "7: 'text' holds half a character ('\\ud83d' at 0). Correct the record.",
        "8: not a JSON object (got str 'text'). Write an object there.",
        "9: not valid JSON (Expecting value: line 1 column 2 (char 1)). Correct the line.",
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 2**22])
def test_cuts_lie_between_lines(tmp_path, monkeypatch, ending, chunk):
    monkeypatch.setattr(jsonl, "_CHUNK", chunk)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "x" * (n % 5 + 1)}) for n in range(23)]
    path.write_text("\n".join(lines) + ending)
    for records in (1, 2, 5, 22, 23, 24):
        config = SourceConfig(path=str(path))
        cut = list_chunks(config, records)
        whole = 23 + (ending == "\n\n")
        assert [part.count for part in cut[:-1]] == [records] * (len(cut) - 1)
        assert sum(part.count for part in cut) == whole
        found = [[entry.line for entry in read_chunk(config, part)] for part in cut]
        assert [line for lines in found for line in lines] == list(range(1, 24))


def test_a_line_without_end_is_refused(tmp_path, read, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST", 50)
    path = tmp_path / "a.jsonl"
    short = json.dumps({"text": "short"})
    for length in (51, 52, 102, 103, 500):
        path.write_text(f"{short}\n{'x' * length}\n{short}\n")
        found = read(path)
        assert [entry.line for entry in found] == [1, 2, 3]
        assert found[1].problem == f"{path}:2: longer than 50 bytes. Cut it or leave it out."
        assert found[2].record.text == "short"
    path.write_text(short.ljust(50) + "\n")
    assert read(path)[0].record.text == "short"


def test_a_file_that_can_not_be_opened_is_one_refusal(tmp_path, read, write_lines):
    path = write_lines(tmp_path / "a.jsonl", *({"text": "x"} for _ in range(9)))
    config = SourceConfig(path=str(path))
    cut = list_chunks(config, 5)
    path.unlink()
    found = [entry for part in cut for entry in read_chunk(config, part)]
    assert [(entry.broken, entry.line) for entry in found] == [(True, 1), (True, 6)]
    assert found[1].problem == (
        f"{path}:6: can't be read (No such file or directory). From here on the file is lost; mend "
        "it or download it again."
    )
    (tmp_path / "b.jsonl").write_text("")
    write_lines(tmp_path / "c.jsonl", {"text": "x"})
    empty, good = read(tmp_path / "[bc].jsonl")
    assert empty.problem == (
        f"{tmp_path}/b.jsonl: the file is empty. Download it again or leave it out."
    )
    assert good.record.text == "x"
