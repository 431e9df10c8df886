import bz2
import gzip
import json
import lzma
import random
import zlib

import pyarrow as pa
import pytest

from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.data.readers.compressed import DamagedError, decompressed


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
def test_content_is_what_was_compressed(tmp_path, read, suffix):
    compress = CODECS[suffix]
    text = lines(3000)
    path = tmp_path / f"a.jsonl{suffix}"
    # two files joined end to end are one, for every codec
    path.write_bytes(compress("".join(text[:1000]).encode()))
    with path.open("ab") as file:
        file.write(compress("".join(text[1000:]).encode()))
    found = read(path, sizes=(100, 5000))
    assert [entry.record.text.split()[0] for entry in found] == [str(n) for n in range(3000)]
    assert found[-1].where == f"{path}:3000"
    (part,) = list_chunks(SourceConfig(path=str(path)), 10)
    assert (part.name, part.count) == (str(path), None)


@pytest.mark.parametrize("suffix", CODECS)
def test_all_that_can_be_unpacked_comes_before_the_cut(tmp_path, read, suffix):
    text = lines(3000)
    whole = CODECS[suffix]("".join(text).encode())
    path = tmp_path / f"a.jsonl{suffix}"
    for share in (0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        stream = decompressed(path.name, lambda: path.open("rb"))
        content = bytearray()
        with stream, pytest.raises(DamagedError, match="compressed data is cut off or damaged"):
            while True:
                content += stream.read(1)
        if suffix in UNPACKED:  # what the codec's own library makes of it
            assert bytes(content) == UNPACKED[suffix](path.read_bytes())
        good = bytes(content).count(b"\n")
        assert good > 500
        *entries, last = read(path, sizes=(100,))
        assert [entry.line for entry in entries] == list(range(1, good + 1))
        assert (last.broken, last.line) == (True, good + 1)
        assert last.problem.startswith(
            f"{path}:{good + 1}: can't be read (compressed data is cut off or damaged: "
        )
        assert last.problem.endswith(
            ". From here on the file is lost; mend it or download it again."
        )


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("content", [b"", b"no such thing"])
def test_what_is_not_compressed_is_one_refusal(tmp_path, read, suffix, content):
    (tmp_path / "b.jsonl").write_text('{"text": "one"}')
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(content)
    good, bad = read((str(tmp_path / "b.jsonl"), str(path)))
    assert good.record.text == "one"
    assert bad.broken
    assert bad.problem.startswith(str(path))


def test_an_error_of_the_disk_is_not_taken_for_damage(tmp_path):
    class Stream:
        closed = False

        def read(self, size=-1):
            raise OSError(5, "Input/output error")

        def close(self):
            pass

    for suffix in CODECS:
        stream = decompressed(f"a{suffix}", Stream)
        with stream, pytest.raises(OSError, match="Input/output error") as error:
            stream.read()
        assert not isinstance(error.value, DamagedError)
