import json
import pickle

from liquidmm.config import from_dict, to_dict
from liquidmm.data.readers import Chunk, SourceConfig, list_chunks, read_records


def test_list_chunks_same_every_time_and_serializable(tmp_path, write_lines):
    path = write_lines(tmp_path / "r.jsonl", *({"text": str(n)} for n in range(10)))
    config = SourceConfig(path=str(path))
    found = list_chunks(config, 4)
    assert [chunk.name for chunk in found] == [f"{path}:1-4", f"{path}:5-8", f"{path}:9-10"]
    assert [chunk.count for chunk in found] == [4, 4, 2]
    assert list_chunks(config, 4) == found
    for chunk in found:
        assert pickle.loads(pickle.dumps(chunk)) == chunk
        assert from_dict(Chunk, json.loads(json.dumps(to_dict(chunk))), "chunk") == chunk
    assert from_dict(SourceConfig, to_dict(config), "run") == config


def test_list_chunks_small_files_share_a_chunk(tmp_path, write_lines, read):
    for name in "cab":
        write_lines(tmp_path / f"{name}.jsonl", {"text": f"{name}1"}, {"text": f"{name}2"})
    found = read(tmp_path / "*.jsonl")
    assert [item.record.text for item in found] == ["a1", "a2", "b1", "b2", "c1", "c2"]
    config = SourceConfig(path=str(tmp_path / "*.jsonl"))
    cut = list_chunks(config, 4)
    assert [chunk.count for chunk in cut] == [4, 2]
    assert cut[0].name == f"{tmp_path}/a.jsonl:1-2 to {tmp_path}/b.jsonl:1-2"
    (item, *_) = read(tmp_path / "{b,a}.jsonl")
    assert item.record.text == "b1"
    several = SourceConfig(path=(str(tmp_path / "c.jsonl"), str(tmp_path / "a.jsonl")))
    assert [record.text for record in read_records(several)] == ["c1", "c2", "a1", "a2"]
