import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.data.readers import Fields, SourceConfig, list_chunks
from liquidmm.errors import DataError


def test_a_folder_stands_for_the_files_in_it(tmp_path, read):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# a set")
    (tmp_path / "dataset_infos.json").write_text("{}")
    for name in ("train-0", "train-1"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"data/{name}.parquet")
    assert [entry.record.text for entry in read(tmp_path)] == ["train-0", "train-1"]
    (tmp_path / "more.jsonl").write_text('{"text": "more"}')
    with pytest.raises(DataError, match=": holds files of jsonl and parquet. Name one kind of th"):
        read(tmp_path)
    assert [entry.record.text for entry in read(tmp_path, format="jsonl")] == ["more"]
    (tmp_path / "data/a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="holds .*.json.? and pictures. Name the file, or say"):
        read(tmp_path)
    (entry,) = read(tmp_path, format="folder")
    assert "no readable a.txt" in entry.problem


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_table_may_describe_the_pictures_of_a_folder(tmp_path, read, suffix):
    for part in ("train", "test"):
        (tmp_path / part / "sub").mkdir(parents=True)
        (tmp_path / part / "sub/a.png").write_bytes(b"x")
        table = tmp_path / part / f"metadata.{suffix}"
        row = {"file_name": "sub/a.png", "text": f"a {part}", "blip": "a thing"}
        match suffix:
            case "jsonl":
                table.write_text(str(row).replace("'", '"'))
            case "csv":
                table.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
            case _:
                pq.write_table(pa.Table.from_pylist([row]), table)
    test, train = (entry.record for entry in read(tmp_path))
    assert (train.image, train.captions) == (tmp_path / "train/sub/a.png", ("a train",))
    assert test.image == tmp_path / "test/sub/a.png"
    (first, _) = read(tmp_path, fields=Fields(captions="blip"))
    assert first.record.captions == ("a thing",)
    # without the layout it would be a document
    (entry,) = read(tmp_path / f"train/metadata.{suffix}", layout="liquid")
    assert entry.record.text == "a train"


def test_a_format_that_is_said_needs_no_suffix(tmp_path, read):
    (tmp_path / "part-00000").write_text('{"text": "one"}')
    with pytest.raises(DataError, match="unknown kind of source"):
        read(tmp_path / "part-*")
    assert read(tmp_path / "part-*", format="jsonl")[0].record.text == "one"


def test_many_files_keep_their_order(tmp_path, read):
    for number in range(60):
        line = f'{{"text": "{number}"}}\n'
        (tmp_path / f"{number:02d}.jsonl").write_text(line * (number % 3))
    config = SourceConfig(path=str(tmp_path / "*.jsonl"))
    cut = list_chunks(config, 10)
    # an empty file is a part of its own, to be refused
    assert sum(part.count or 0 for part in cut) == 60
    found = [entry.record.text for entry in read(tmp_path / "*.jsonl") if entry.record]
    assert found == [str(n) for n in range(60) for _ in range(n % 3)]
