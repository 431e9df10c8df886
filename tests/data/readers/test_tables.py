import gzip

import pytest

from liquidmm.data.readers import Fields, SourceConfig, list_chunks
from liquidmm.data.records import ImageTextRecord, TextRecord


def test_read_quotes_and_bad_rows(tmp_path, read, check_problems):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfimage,caption,license\r\n"
        b'a.jpg,"a cat, black",MIT\r\n'
        b"\r\n"
        b'b.jpg,"two\nlines and ""quotes""",\r\n'
        b"c.jpg\r\n"
        b'd.jpg,"a ""dog"" ",MIT\n'
        b'e.jpg,"x"y,MIT\n'
        b"f.jpg,caf\xe9,MIT\n"
        b",,\n"
        b"g.jpg,a bee,CC0-1.0"
    )
    found = read(path)
    assert [item.line for item in found] == [2, 4, 6, 7, 8, 9, 10, 11]
    assert found[1].record == ImageTextRecord(
        key=f"{path}:4", image=tmp_path / "b.jpg", captions=('two\nlines and "quotes"',)
    )
    assert found[3].record.captions == ('a "dog" ',)
    assert (found[7].record.license, found[7].where) == ("CC0-1.0", f"{path}:11")
    check_problems(
        found,
        r"a\.csv:6: expected 3 cells, got 1",
        r"a\.csv:8: not valid CSV \(',' expected after '\"'\)",
        r"a\.csv:9: .*caption.*UTF-8.*0xe9 at 3",
        r"a\.csv:10: .*no keys",
    )
    config = SourceConfig(path=str(path))
    assert [chunk.name for chunk in list_chunks(config, 5)] == [f"{path}:2-", f"{path}:9-"]
    assert [chunk.count for chunk in list_chunks(config, 5)] == [5, 3]


def test_read_tsv_and_compressed_csv(tmp_path, read):
    path = tmp_path / "Train_GCC.tsv"
    path.write_text('caption\tfile\na "cat"\ta.jpg\n')
    (item,) = read(path, fields=Fields(image="file"))
    assert item.record.captions == ('a "cat"',)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\none\ntwo\n"))
    assert [item.record for item in read(path)] == [
        TextRecord(key=f"{path}:2", text="one"),
        TextRecord(key=f"{path}:3", text="two"),
    ]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", 1, "expected a header row"),
        ("text,text\na,b\n", 1, "expected a header row with distinct"),
        ('"text\n', 1, "expected a header row"),
        ('text\none\n"two\nthree\n', 3, "not valid CSV (unexpected end of data). Correct"),
        ("text\n" + "x" * 200_000, 2, "not valid CSV (field larger than field limit (131072))"),
    ],
)
def test_read_bad_table_rejected(tmp_path, read, content, line, words):
    (tmp_path / "a.csv").write_text("text\nfine\n")
    path = tmp_path / "b.csv"
    path.write_text(content)
    found = read((str(tmp_path / "a.csv"), str(path)))
    assert [item.line for item in found if item.record is None] == [line]
    assert found[-1].problem.startswith(f"{path}:{line}: {words}")
