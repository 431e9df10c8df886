import os

import pytest

from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.data.records import ImageTextRecord


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a.JPG", "sub/c.webp"):
        (folder / name).write_bytes(b"x")
    (folder / "b.txt").write_text("\ufeffa bee\n\na wasp\n")
    (folder / "sub/a.txt").write_text("an ant")
    (folder / "sub/c.txt").write_text("a cat")
    return folder


def test_captions_stand_beside_pictures(folder, read):
    assert [entry.record for entry in read(folder)] == [
        ImageTextRecord(key="b", image=folder / "b.png", captions=("a bee", "a wasp")),
        ImageTextRecord(key="sub/a", image=folder / "sub/a.JPG", captions=("an ant",)),
        ImageTextRecord(key="sub/c", image=folder / "sub/c.webp", captions=("a cat",)),
    ]
    assert [part.count for part in list_chunks(SourceConfig(path=str(folder)), 2)] == [1, 2]
    assert read(f"{folder}/")[1].record.key == "sub/a"


def test_what_can_not_be_used_is_refused(folder, read):
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
    (folder / "notes.md").write_text("not an entry")
    (folder / os.fsdecode(b"h\xff.png")).write_bytes(b"x")
    found = read(folder)
    problems = [entry.problem.removeprefix(f"{folder}/") for entry in found]
    assert problems == [
        "b.png: no readable b.txt (No such file or directory). Write one caption per line there.",
        "d.txt: captions without a picture. Add the picture or remove the file.",
        "e.heic: pictures of this kind ('.heic') are not read. Convert it.",
        "f.png: is a folder, not a picture; what is in it is not read. Rename it.",
        "",
        "h\\udcff.png: the name is not UTF-8. Rename the file.",
        "sub/a.JPG: a.txt is empty. Write a caption there.",
        (
            "sub/c.webp: no readable c.txt ('utf-8' codec can't decode byte 0xe9 in position 3: "
            "unexpected end of data). Write one caption per line there."
        ),
    ]
    assert found[4].record.captions == ("dangling",)


def test_a_folder_that_can_not_be_listed_is_one_refusal(folder, read, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    first, second = read(folder)
    assert first.record.key == "b"
    assert second.broken
    assert second.problem == f"{folder}/sub: can't be listed (Permission denied). Check the folder."
