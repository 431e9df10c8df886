import gzip
import io
import json
import tarfile

import pytest

from liquidmm.data.readers import Fields, SourceConfig, list_chunks
from liquidmm.data.records import ChatRecord, ImageTextRecord, TextRecord


def tar(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
                continue
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(*members, name="a.tar"):
        path = tmp_path / name
        content = tar(*members)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return path

    return write


IMG2DATASET = [
    ("000000000.jpg", b"JPEG0"),
    ("000000000.json", {"caption": "not this", "url": "x", "status": "success", "license": "MIT"}),
    ("000000000.txt", b" a cat\nasleep\n"),
    ("000000001.jpg", b"JPEG1"),
    ("000000001.json", {"caption": "a dog", "key": "000000001", "original_width": None}),
]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_read_members_of_one_key_make_a_sample(write, read, name):
    path = write(*IMG2DATASET, name=name)
    assert [item.record for item in read(path, sizes=(1, 9))] == [
        ImageTextRecord(
            key="000000000", image=b"JPEG0", captions=("a cat\nasleep",), license="MIT"
        ),
        ImageTextRecord(key="000000001", image=b"JPEG1", captions=("a dog",)),
    ]
    (chunk,) = list_chunks(SourceConfig(path=str(path)), 1)
    assert (chunk.name, chunk.count) == (str(path), None)


def test_read_shards_named_by_braces(write, read, tmp_path):
    for number in range(12):
        write(
            (f"x/{number}.b.png", b"other"),
            (f"x/{number}.PNG", b"PNG"),
            (f"x/{number}.txt", b"words"),
            name=f"{number:05d}.tar",
        )
    found = read(tmp_path / "{00000..00011}.tar", sizes=(5,))
    assert [item.record.key for item in found] == [f"x/{number}" for number in range(12)]
    assert found[3].where == f"{tmp_path}/00003.tar:x/3"
    assert {item.record.image for item in found} == {b"PNG"}


def test_read_chats_texts_and_classes(write, read, tmp_path, check_problems):
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "."}]
    path = write(
        ("a.jpg", b"A"), ("a.json", {"conversations": turns}), ("b.json", {"text": "document"})
    )
    chat, text = (item.record for item in read(path, sizes=(1,)))
    assert isinstance(chat, ChatRecord)
    assert (chat.key, chat.images) == ("a", (b"A",))
    assert text == TextRecord(key="b", text="document")
    path = write(("a.txt", b"a document"), ("b.txt", b"another"))
    found = read(path, fields=Fields(text="txt"), sizes=(1,))
    assert [item.record.text for item in found] == ["a document", "another"]
    classes = tmp_path / "classes.txt"
    classes.write_text("tench\ngoldfish\n")
    path = write(("a.jpg", b"A"), ("a.cls", b"1\n"), ("b.jpg", b"B"), ("b.cls", b"shark"))
    found = read(path, classes=str(classes), sizes=(1,))
    assert [item.record.captions for item in found] == [("goldfish",), ("shark",)]
    check_problems(read(path)[:1], r"caption.*int 1")
    path = write(("a.jpg", b"A"), ("a.seg.png", b"S"), ("a.json", {"blip": ["x", "y"]}))
    (item,) = read(path, fields=Fields(image="seg.png", captions="json.blip"), sizes=(1,))
    assert (item.record.image, item.record.captions) == (b"S", ("x", "y"))


def test_read_bad_samples_rejected_others_kept(write, read, check_problems):
    path = write(
        ("no-caption.jpg", b"A"),
        ("no-image.txt", b"words"),
        ("twice.jpg", b"A"),
        ("twice.txt", b"one"),
        ("twice.txt", b"two"),
        ("images.jpg", b"A"),
        ("images.png", b"A"),
        ("images.txt", b"one"),
        ("captions.jpg", b"A"),
        ("captions.txt", b"one"),
        ("captions.caption", b"two"),
        ("json.jpg", b"A"),
        ("json.json", b"no"),
        ("bytes.jpg", b"A"),
        ("bytes.txt", b"caf\xe9"),
        ("blank.jpg", b"A"),
        ("blank.txt", b" \n"),
        ("empty.jpg", b""),
        ("empty.txt", b"one"),
        ("phone.heic", b"A"),
        ("phone.txt", b"one"),
        ("folder.jpg", None),
        (".hidden.jpg", b"A"),
        ("movie.mp4", b"A"),
        ("good.jpg", b"A"),
        ("good.npy", b"A"),
        ("good.txt", b"good"),
    )
    found = read(path, sizes=(1,))
    assert found[-1].record.key == "good"
    check_problems(
        found,
        r":no-caption: .*without a caption",
        r":no-image: no image \(members: txt\)",
        r":twice: two members 'txt'",
        r":images: two images \(jpg, png\).*fields\.image",
        r":captions: two captions \(txt, caption\).*fields\.captions",
        r":json: 'json' is not valid JSON .*char 0",
        r":bytes: 'txt' is not UTF-8 .*at byte 3",
        r":blank: .*captions.*empty",
        r":empty: .*image.*empty.*0 bytes",
        r":phone: unsupported image format 'heic'",
    )
    assert [item.line for item in found] == list(range(11))


@pytest.mark.parametrize(
    ("damage", "good", "words"),
    [
        (lambda whole: whole[:1800], 0, "unexpected end of data"),
        (lambda whole: whole[:4300], 1, "unexpected end of data"),
        (lambda whole: whole[: 15 * 512], 2, "the file ends before the archive does"),
        (lambda whole: whole[:5120] + b"\1" * 512 + whole[5632:], 1, "invalid header"),
        (lambda whole: whole[:5121] + b"\1" + whole[5122:], 1, "bad checksum"),
        (lambda whole: whole[:100], 0, "truncated header"),
        (lambda whole: b"no tar " * 1000, 0, "invalid header"),
        (lambda whole: whole + b"more" * 128, 3, "invalid header"),
    ],
)
def test_read_damaged_archive_rest_rejected_once(tmp_path, read, damage, good, words):
    members = [
        member
        for key in "abc"
        for member in ((f"{key}.jpg", key.encode() * 500), (f"{key}.txt", b"x" * 600))
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(damage(tar(*members)))  # 5 blocks of 512 bytes a sample, then the end
    *items, last = read(path, sizes=(1,))
    assert len(items) == good
    assert all(item.record for item in items)
    assert (last.rest_lost, last.line) == (True, good)
    assert last.problem.startswith(f"{path}[{good}]: not readable as tar ({words}).")
    assert "rest of the file is lost" in last.problem


def test_read_concatenated_archives_to_the_end(tmp_path, read):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(*IMG2DATASET) + tar(("b.jpg", b"B"), ("b.txt", b"more")))
    assert [item.record.key for item in read(path, sizes=(1,))] == ["000000000", "000000001", "b"]
