import gzip
import io
import json
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from liquidmm.data.readers import SourceConfig, digest, list_chunks, read_chunk
from liquidmm.data.readers.files import find_files, open_raw
from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.image_tokenizer.images import open_image


@pytest.fixture
def memory():
    """A file system without files, and a function that writes them."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]

    def write(name, content):
        fs.pipe_file(name, content if isinstance(content, bytes) else content.encode())
        return f"memory://{name}"

    yield write
    fs.store.clear()


def png(color):
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(stream, "PNG")
    return stream.getvalue()


def names(pattern):
    return [file.name for file in find_files(str(pattern))]


def test_find_files_patterns_expand_in_order(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "b/a3.jsonl", "c[1].jsonl", "{x}.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert names(tmp_path / "a?.jsonl") == [f"{tmp_path}/a1.jsonl", f"{tmp_path}/a2.jsonl"]
    assert names(tmp_path / "**/a*.jsonl")[-1] == f"{tmp_path}/b/a3.jsonl"
    assert names(tmp_path / "a{2..1}.jsonl".replace("2..1", "1..2"))[1] == f"{tmp_path}/a2.jsonl"
    assert names(tmp_path / "{b/a3,a1}.jsonl") == [f"{tmp_path}/{n}.jsonl" for n in ("b/a3", "a1")]
    # the name of an existing file is never a pattern
    assert names(tmp_path / "c[1].jsonl") == [f"{tmp_path}/c[1].jsonl"]
    assert names(tmp_path / "{x}.jsonl") == [f"{tmp_path}/{{x}}.jsonl"]
    assert names(tmp_path) == [str(tmp_path)]
    assert names(tmp_path / "*") == [
        f"{tmp_path}/{n}.jsonl" for n in ("a1", "a2", "c[1]", "{x}")
    ]  # files before folders
    for pattern, words in [
        ("d*.jsonl", "no file matches '.*d\\*.jsonl'"),
        ("a{1..3}.jsonl", "a{1..3}.jsonl: no such file .*a3.jsonl'"),
        ("a{0..99999999}.jsonl", "'{0..99999999}' names 100000000"),
    ]:
        with pytest.raises(DataError, match=words):
            find_files(str(tmp_path / pattern))


def test_find_files_range_keeps_leading_zeros(memory):
    for number in range(8, 12):
        memory(f"/s/{number:03d}.tar", b"x")
    found = names("memory:///s/{008..011}.tar")
    assert [name[-7:] for name in found] == ["008.tar", "009.tar", "010.tar", "011.tar"]


def test_read_jsonl_from_url_with_relative_images(memory, read):
    image = memory("/set/images/a.png", png((255, 0, 0)))
    memory("/set/b.jsonl", json.dumps({"image": "./images/a.png", "caption": "red"}) + "\n")
    memory("/set/a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    first, second, third = read("memory:///set/*.jsonl*")
    assert [first.record.text, second.record.text] == ["one", "two"]
    assert first.where == "memory:///set/a.jsonl.gz:1"
    assert third.record.image == image
    assert open_image(third.record.image).getpixel((0, 0)) == (255, 0, 0)
    (third,) = read("memory://set/b.jsonl", image_root="memory://elsewhere")
    assert third.record.image == "memory://elsewhere/images/a.png"
    with pytest.raises(DataError, match="^memory://elsewhere/images/a.png: no such file"):
        open_image(third.record.image)


def test_read_every_format_from_url(memory, read, check_problems):
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [b"A", b"B"], "text": ["a", "b"]}), stream)
    memory("/p/a.parquet", stream.getvalue())
    assert [item.record.image for item in read("memory://p/*.parquet")] == [b"A", b"B"]
    assert [item.record.image for item in read("memory://p")] == [b"A", b"B"]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (("a.jpg", b"A"), ("a.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    memory("/t/00.tar", stream.getvalue())
    assert read("memory://t/{00..00}.tar")[0].record.captions == ("a",)
    memory("/j/a.json", json.dumps([{"text": str(n)} for n in range(9)]))
    assert [item.record.text for item in read("memory://j/a.json")] == list("012345678")
    memory("/c/a.csv", "text\none\n")
    assert read("memory://c/a.csv")[0].record.text == "one"
    memory("/f/x/a.png", png((0, 0, 255)))
    memory("/f/x/a.txt", "blue\nazure")
    memory("/f/b.png", png((0, 0, 0)))
    nothing, blue = read("memory://f")
    check_problems([nothing], r"^memory:///f/b\.png: cannot read b\.txt \(/f/b\.txt\)")
    assert (blue.record.key, blue.record.captions) == ("x/a", ("blue", "azure"))
    assert open_image(blue.record.image).getpixel((0, 0)) == (0, 0, 255)


def test_digest_of_url_follows_content(memory):
    memory("/d/a.jsonl", '{"text": "one"}')
    config = SourceConfig(path="memory://d/a.jsonl")
    first = digest(config)
    memory("/d/a.jsonl", '{"text": "two"}')
    assert digest(config) != first
    memory("/f/a.png", "1")
    folder = SourceConfig(path="memory://f")
    first = digest(folder)
    assert digest(folder) == first
    memory("/f/b.png", "1")
    assert digest(folder) != first


def test_read_file_url(tmp_path, read):
    (tmp_path / "a.png").write_bytes(png((0, 255, 0)))
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "green"}')
    (item,) = read(f"file://{tmp_path}/a.jsonl")
    assert open_image(item.record.image).getpixel((0, 0)) == (0, 255, 0)


def test_find_files_unknown_protocol_rejected():
    with pytest.raises(ConfigError, match="^nope://: unknown protocol"):
        find_files("nope://a/b.jsonl")
    with pytest.raises(DataError, match="^nope://a.png: can"):
        open_image("nope://a.png")
    with pytest.raises(ConfigError, match="^s3://: Install s3fs to access S3"):
        find_files("s3://bucket/b.jsonl")


def test_read_network_error_is_not_a_rejected_record(memory, monkeypatch):
    memory("/n/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    memory("/n/a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    memory("/n/a.json", '[{"text": "one"}]')
    memory("/n/a.csv", "text\none\n")
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), stream)
    memory("/n/a.parquet", stream.getvalue())
    memory("/n/a.tar", b"x")
    memory("/n/a.png", b"x")
    found = {}
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.tar"):
        config = SourceConfig(path=f"memory://n/{name}")
        found[name] = (config, list_chunks(config, 10)[0])

    class Down(io.RawIOBase):
        def readable(self):
            return True

        def seekable(self):
            return True

        def seek(self, *_):
            return 0

        def tell(self):
            return 1000

        def readinto(self, _):
            raise ConnectionResetError(104, "Connection reset by peer")

    fs = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(fs, "_open", lambda *_, **__: io.BufferedReader(Down()))
    monkeypatch.setattr(fs, "cat_file", lambda *_, **__: Down().readinto(b""))
    for name, (config, chunk) in found.items():
        with pytest.raises(LiquidError, match=f"/n/{name}: cannot be read .*Connection") as e:
            list(read_chunk(config, chunk))
        assert not isinstance(e.value, DataError)
        if name != "a.tar":
            with pytest.raises(LiquidError, match="cannot be read at the moment"):
                list_chunks(config, 10)
    with pytest.raises(LiquidError, match="a.png: can.* be read") as e:
        open_image("memory://n/a.png")
    assert not isinstance(e.value, DataError)
    folder = SourceConfig(path="memory://n", format="folder")
    monkeypatch.setattr(fs, "ls", lambda *_, **__: Down().readinto(b""))
    with pytest.raises(LiquidError, match="/n: cannot be read at the moment"):
        list_chunks(folder, 10)
    with pytest.raises(ConnectionResetError):
        open_raw("memory://n/a.jsonl").read()
