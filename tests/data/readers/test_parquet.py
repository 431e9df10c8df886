import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.data.records import ChatRecord, Message
from liquidmm.errors import DataError

HELLO = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
LMSYS = [{"content": "Hi.", "role": "user"}, {"content": "Hello.", "role": "assistant"}]
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]


def test_read_rows_of_all_groups(tmp_path, read, check_problems):
    path = tmp_path / "train-00000-of-00001.parquet"
    rows = [
        {"conversation_id": "a", "conversation": LMSYS, "openai_moderation": [{"flagged": False}]},
        {"conversation_id": "b", "conversation": [{"content": None, "role": "user"}]},
        {"conversation_id": "c", "conversation": None},
        *({"conversation_id": f"d{n}", "conversation": LMSYS} for n in range(60)),
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
    found = read(path)
    assert len(found) == 63
    assert [found[n].record for n in (0, 62)] == [
        ChatRecord(key="a", messages=HELLO),
        ChatRecord(key="d59", messages=HELLO),
    ]
    assert (found[62].where, found[62].line) == (f"{path}[62]", 62)
    check_problems(
        found,
        r"\[1\]: conversation\[0\]: .*content.*nothing",
        r"\[2\]: .*keys: conversation_id",
    )


def test_read_images_stored_by_hugging_face(tmp_path, read, check_problems):
    path = tmp_path / "a.parquet"
    file = {"bytes": b"PNG", "path": None}
    shown = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"id": "1", "image": file, "conversations": shown, "license": "MIT"},
        {"id": "2", "image": None, "conversations": SHAREGPT, "license": None},
        {"id": "3", "image": {"bytes": None, "path": "x.png"}, "conversations": shown},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second, third = (item.record for item in read(path))
    assert (first.images, first.license) == ((b"PNG",), "MIT")
    assert second == ChatRecord(key="2", messages=HELLO)
    assert third.images == (tmp_path / "x.png",)
    pq.write_table(pa.table({"image": [b"PNG", b""], "text": ["a cat", "nothing"]}), path)
    first, second = read(path)
    assert (first.record.image, first.record.captions) == (b"PNG", ("a cat",))
    check_problems([second], r"a\.parquet\[1\]: .*image.*empty.*0 bytes")
    turns = [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "."}]
    pq.write_table(pa.table({"messages": [turns], "images": [[b"A", b"B"]]}), path)
    assert read(path)[0].record.images == (b"A", b"B")


def test_read_invalid_utf8_spoils_one_row(tmp_path, read, check_problems):
    path = tmp_path / "a.parquet"
    column = pa.array([b"one", b"tw\xf6", b"three"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), path)
    first, second, third = read(path)
    assert (first.record.text, third.record.text) == ("one", "three")
    check_problems([second], r"a\.parquet\[1\]: not UTF-8 .*at byte 2")


def test_read_file_without_footer_rejected_once(tmp_path, read):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    bad, *good = read(tmp_path / "*.parquet")
    assert [item.record.text for item in good] == ["one", "two"]
    assert bad.rest_lost
    assert bad.problem.startswith(f"{tmp_path}/a.parquet[0]: not readable as Parquet (")
    assert "rest of the file is lost" in bad.problem
    assert "\n" not in bad.problem


def test_read_broken_row_group_others_kept(tmp_path, read):
    path = tmp_path / "a.parquet"
    rows = [{"conversation_id": str(n), "conversation": LMSYS} for n in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500, compression="zstd")
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    found = read(path, sizes=(500, 2000))
    assert [item.line for item in found if item.record is None] == [500]
    assert [item.line for item in found] == [*range(501), *range(1000, 2000)]
    assert found[500].rest_lost
    assert "Rows 500 to 999 are lost" in found[500].problem


def test_cut_prefers_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 100}), path, row_group_size=10)
    config = SourceConfig(path=str(path))

    def counts(records):
        return [chunk.count for chunk in list_chunks(config, records)]

    assert counts(25) == [20] * 5
    assert counts(10) == [10] * 10
    assert counts(4) == [4, 4, 2] * 10
    pq.write_table(pa.table({"text": ["x"] * 100}), path)
    assert counts(1) == [4] * 25  # a row group is cut into 32 pieces at most
    assert counts(1000) == [100]


def test_cut_files_with_other_columns_rejected(tmp_path, read):
    pq.write_table(pa.table({"image": [b"x"], "text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"x"], "txt": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: has no column text, but .*a.parquet"):
        read(tmp_path / "*.parquet")
