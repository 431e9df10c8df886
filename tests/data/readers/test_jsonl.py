import json

import pytest

from liquidmm.data.readers import SourceConfig, jsonl, list_chunks, read_chunk


def test_read_bad_lines_rejected_others_kept(tmp_path, read, check_problems):
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
    assert [item.line for item in found] == [1, 3, 4, 6, 7, 8, 9]
    assert [item.record.text for item in found if item.record] == ["one", "three"]
    check_problems(
        found,
        r"a\.jsonl:3: .*UTF-8.*byte 12",
        r"a\.jsonl:6: .*text.*float nan",
        r"a\.jsonl:7: .*text.*ud83d.* at 0",
        r"a\.jsonl:8: .*object.*str 'text'",
        r"a\.jsonl:9: not valid JSON.*char 1",
    )


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 2**22])
def test_cut_any_block_size_ends_at_lines(tmp_path, monkeypatch, ending, chunk):
    monkeypatch.setattr(jsonl, "READ_BYTES", chunk)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "x" * (n % 5 + 1)}) for n in range(23)]
    path.write_text("\n".join(lines) + ending)
    for records in (1, 2, 5, 22, 23, 24):
        config = SourceConfig(path=str(path))
        cut = list_chunks(config, records)
        whole = 23 + (ending == "\n\n")
        assert [chunk.count for chunk in cut[:-1]] == [records] * (len(cut) - 1)
        assert sum(chunk.count for chunk in cut) == whole
        found = [[item.line for item in read_chunk(config, chunk)] for chunk in cut]
        assert [line for lines in found for line in lines] == list(range(1, 24))


def test_read_line_too_long_rejected(tmp_path, read, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 50)
    path = tmp_path / "a.jsonl"
    short = json.dumps({"text": "short"})
    for length in (51, 52, 102, 103, 500):
        path.write_text(f"{short}\n{'x' * length}\n{short}\n")
        found = read(path)
        assert [item.line for item in found] == [1, 2, 3]
        assert found[1].problem.startswith(f"{path}:2: longer than 50 bytes.")
        assert found[2].record.text == "short"
    path.write_text(short.ljust(50) + "\n")
    assert read(path)[0].record.text == "short"


def test_read_file_missing_or_empty_rejected_once(tmp_path, read, write_lines, check_problems):
    path = write_lines(tmp_path / "a.jsonl", *({"text": "x"} for _ in range(9)))
    config = SourceConfig(path=str(path))
    cut = list_chunks(config, 5)
    path.unlink()
    found = [item for chunk in cut for item in read_chunk(config, chunk)]
    assert [(item.rest_lost, item.line) for item in found] == [(True, 1), (True, 6)]
    check_problems(found, r"a\.jsonl:1: .*No such file", r"a\.jsonl:6: .*No such file.*rest of the")
    (tmp_path / "b.jsonl").write_text("")
    write_lines(tmp_path / "c.jsonl", {"text": "x"})
    empty, good = read(tmp_path / "[bc].jsonl")
    check_problems([empty], r"b\.jsonl: .*empty")
    assert good.record.text == "x"
