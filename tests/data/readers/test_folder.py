import os

import pytest

from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.data.records import ImageTextRecord


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a.JPG", "sub/c.webp"):
        (folder / name).write_bytes(b"x")
    (folder / "b.txt").write_text("\ufeffa bee\n\na wasp\n")
    (folder / "sub/a.txt").write_text("an ant")
    (folder / "sub/c.txt").write_text("a cat")
    return folder


def test_read_images_with_caption_files(folder, read):
    assert [item.record for item in read(folder)] == [
        ImageTextRecord(key="b", image=folder / "b.png", captions=("a bee", "a wasp")),
        ImageTextRecord(key="sub/a", image=folder / "sub/a.JPG", captions=("an ant",)),
        ImageTextRecord(key="sub/c", image=folder / "sub/c.webp", captions=("a cat",)),
    ]
    assert [chunk.count for chunk in list_chunks(SourceConfig(path=str(folder)), 2)] == [1, 2]
    assert read(f"{folder}/")[1].record.key == "sub/a"


def test_read_unusable_files_rejected(folder, read, check_problems):
    (folder / "b.txt").unlink()
    (folder / "sub/a.txt").write_text(" \n")
    (folder / "sub/c.txt").write_bytes(b"caf\xe9")
    (folder / "d.txt").write_text("nobody")
    (folder / "e.heic").write_bytes(b"x")
    (folder / "e.txt").write_text("a phone's")
    (folder / "f.png").mkdir()
    (folder / "f.png/inside.png").write_bytes(b"x")
    (folder / "g.png").symlink_to("nowhere")
    (folder / "g.txt").write_text("dangling")
    (folder / "again").symlink_to(folder)
    (folder / "notes.md").write_text("not an item")
    (folder / os.fsdecode(b"h\xff.png")).write_bytes(b"x")
    found = read(folder)
    check_problems(
        found,
        r"/b\.png: .*b\.txt \(No such file or directory\)",
        r"/d\.txt: captions without an image",
        r"/e\.heic: unsupported image format '\.heic'",
        r"/f\.png: is a folder",
        r"/h\\udcff\.png: .*not UTF-8",
        r"/sub/a\.JPG: a\.txt is empty",
        r"/sub/c\.webp: .*c\.txt \(.*0xe9 in position 3",
    )
    assert found[4].record.captions == ("dangling",)


def test_read_unlistable_folder_rejected_once(folder, read, monkeypatch, check_problems):
    scandir = os.scandir

    def scan(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    first, second = read(folder)
    assert first.record.key == "b"
    assert second.rest_lost
    check_problems([second], r"/sub: cannot be listed \(Permission denied\)")
