import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.data.readers import Fields, SourceConfig, list_chunks
from liquidmm.errors import DataError


def test_folder_of_data_files_read_as_their_format(tmp_path, read, check_problems):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# a set")
    (tmp_path / "dataset_infos.json").write_text("{}")
    for name in ("train-0", "train-1"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"data/{name}.parquet")
    assert [item.record.text for item in read(tmp_path)] == ["train-0", "train-1"]
    (tmp_path / "more.jsonl").write_text('{"text": "more"}')
    with pytest.raises(DataError, match="jsonl and parquet"):
        read(tmp_path)
    assert [item.record.text for item in read(tmp_path, format="jsonl")] == ["more"]
    (tmp_path / "data/a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"contains .*\.json.? and images.*format = 'folder'"):
        read(tmp_path)
    check_problems(read(tmp_path, format="folder"), r"a\.png: cannot read a\.txt")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_folder_with_metadata_table_read_as_imagefolder(tmp_path, read, suffix):
    for split in ("train", "test"):
        (tmp_path / split / "sub").mkdir(parents=True)
        (tmp_path / split / "sub/a.png").write_bytes(b"x")
        table = tmp_path / split / f"metadata.{suffix}"
        row = {"file_name": "sub/a.png", "text": f"a {split}", "blip": "a thing"}
        match suffix:
            case "jsonl":
                table.write_text(str(row).replace("'", '"'))
            case "csv":
                table.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
            case _:
                pq.write_table(pa.Table.from_pylist([row]), table)
    test, train = (item.record for item in read(tmp_path))
    assert (train.image, train.captions) == (tmp_path / "train/sub/a.png", ("a train",))
    assert test.image == tmp_path / "test/sub/a.png"
    (first, _) = read(tmp_path, fields=Fields(captions="blip"))
    assert first.record.captions == ("a thing",)
    # without the layout it would be a document
    (item,) = read(tmp_path / f"train/metadata.{suffix}", layout="liquid")
    assert item.record.text == "a train"


def test_format_named_needs_no_suffix(tmp_path, read):
    (tmp_path / "part-00000").write_text('{"text": "one"}')
    with pytest.raises(DataError, match="part-00000: unknown format"):
        read(tmp_path / "part-*")
    assert read(tmp_path / "part-*", format="jsonl")[0].record.text == "one"


def test_cut_many_files_keeps_order(tmp_path, read):
    for number in range(60):
        line = f'{{"text": "{number}"}}\n'
        (tmp_path / f"{number:02d}.jsonl").write_text(line * (number % 3))
    config = SourceConfig(path=str(tmp_path / "*.jsonl"))
    cut = list_chunks(config, 10)
    # an empty file is a chunk, which is rejected when it is read
    assert sum(chunk.count or 0 for chunk in cut) == 60
    found = [item.record.text for item in read(tmp_path / "*.jsonl") if item.record]
    assert found == [str(n) for n in range(60) for _ in range(n % 3)]
