import bz2
import gzip
import json
import lzma
import random
import zlib

import pyarrow as pa
import pytest

from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.data.readers.compressed import DamagedError, decompress


def zstd(content):
    """Frames of some kilobytes, as writers that flush make them."""
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as compressed:
        for start in range(0, len(content), 5000):
            compressed.write(content[start : start + 5000])
            compressed.flush()
    return stream.getvalue().to_pybytes()


CODECS = {
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": lambda content: bz2.compress(content, 1),  # blocks of 100 kB
    ".xz": lzma.compress,
}
UNPACKED = {
    ".gz": lambda content: zlib.decompressobj(31).decompress(content),
    ".bz2": lambda content: bz2.BZ2Decompressor().decompress(content),
    ".xz": lambda content: lzma.LZMADecompressor().decompress(content),
}


def lines(count):
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghij ", k=60)) for _ in range(count)]
    return [json.dumps({"text": f"{n} {word}"}) + "\n" for n, word in enumerate(words)]


@pytest.mark.parametrize("suffix", CODECS)
def test_decompress_every_codec_equals_content(tmp_path, read, suffix):
    compress = CODECS[suffix]
    text = lines(3000)
    path = tmp_path / f"a.jsonl{suffix}"
    # two files joined end to end are one, for every codec
    path.write_bytes(compress("".join(text[:1000]).encode()))
    with path.open("ab") as file:
        file.write(compress("".join(text[1000:]).encode()))
    found = read(path, sizes=(100, 5000))
    assert [item.record.text.split()[0] for item in found] == [str(n) for n in range(3000)]
    assert found[-1].where == f"{path}:3000"
    (chunk,) = list_chunks(SourceConfig(path=str(path)), 10)
    assert (chunk.name, chunk.count) == (str(path), None)


@pytest.mark.parametrize("suffix", CODECS)
def test_decompress_truncated_delivers_all_before_damage(tmp_path, read, suffix):
    text = lines(3000)
    whole = CODECS[suffix]("".join(text).encode())
    path = tmp_path / f"a.jsonl{suffix}"
    for share in (0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        stream = decompress(path.name, lambda: path.open("rb"))
        content = bytearray()
        with stream, pytest.raises(DamagedError, match="truncated or damaged"):
            while True:
                content += stream.read(1)
        if suffix in UNPACKED:  # what the codec's own library makes of it
            assert bytes(content) == UNPACKED[suffix](path.read_bytes())
        good = bytes(content).count(b"\n")
        assert good > 500
        *items, last = read(path, sizes=(100,))
        assert [item.line for item in items] == list(range(1, good + 1))
        assert (last.rest_lost, last.line) == (True, good + 1)
        assert last.problem.startswith(f"{path}:{good + 1}: ")
        assert "truncated or damaged: " in last.problem
        assert "The rest of the file is lost" in last.problem


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("content", [b"", b"no such thing"])
def test_read_not_compressed_rejected_once(tmp_path, read, suffix, content):
    (tmp_path / "b.jsonl").write_text('{"text": "one"}')
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(content)
    good, bad = read((str(tmp_path / "b.jsonl"), str(path)))
    assert good.record.text == "one"
    assert bad.rest_lost
    assert bad.problem.startswith(str(path))


def test_decompress_disk_error_is_not_damage():
    class Stream:
        closed = False

        def read(self, size=-1):
            raise OSError(5, "Input/output error")

        def close(self):
            pass

    for suffix in CODECS:
        stream = decompress(f"a{suffix}", Stream)
        with stream, pytest.raises(OSError, match="Input/output error") as error:
            stream.read()
        assert not isinstance(error.value, DamagedError)
