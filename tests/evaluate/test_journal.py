from pathlib import Path

import pytest
from PIL import Image

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.evaluate.journal import Journal

SETTINGS = {"seed": 0, "limit": 2}


def test_texts_makes_only_missing_answers(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def make(missing: list[int]) -> list[str]:
        asked.append(missing)
        return [f"line {i}\nof call {len(asked)}" for i in missing]

    Journal(tmp_path / "out", SETTINGS).texts(["a/b"], make)
    again = Journal(tmp_path / "out", SETTINGS)
    assert again.texts(["c", "a/b"], make) == ["line 0\nof call 2", "line 0\nof call 1"]
    assert asked == [[0], [0]]
    assert again.texts(["c", "a/b"], make)[0] == "line 0\nof call 2"
    assert len(asked) == 2


def test_texts_that_cannot_be_written_fail_with_reason(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(LiquidError, match=r"answers\.jsonl.*\(Is a directory\)"):
        Journal(tmp_path, {"limit": 2}).texts(["a"], lambda missing: ["one"])


def test_texts_incomplete_line_made_again(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).texts(["a"], lambda _: ["one"])
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"key": "b", "te')
    assert Journal(tmp_path, SETTINGS).texts(["a", "b"], lambda _: ["two"]) == ["one", "two"]
    assert Journal(tmp_path, SETTINGS).texts(["b"], lambda _: ["three"]) == ["two"]


def test_other_settings_rejected(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).texts(["a"], lambda _: ["one"])
    with pytest.raises(ConfigError, match=r"\(seed\)"):
        Journal(tmp_path, {"seed": 1, "limit": 2})


def test_images_makes_only_missing_images(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def make(missing: list[int]) -> list[Image.Image]:
        asked.append(missing)
        return [Image.new("RGB", (4, 4), (i, 0, 0)) for i in missing]

    journal = Journal(tmp_path, SETTINGS)
    journal.images(["part/0", "part/1"], make)
    (tmp_path / "part" / "0.png").unlink()
    images = Journal(tmp_path, SETTINGS).images(["part/0", "part/1"], make)
    assert asked == [[0, 1], [0]]
    assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 0), (1, 0, 0)]
    Journal(None, SETTINGS).images(["part/0"], make)
    assert asked[-1] == [0]
