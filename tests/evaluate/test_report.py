"""Reports and the journal that survives an interruption."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.evaluate.metrics import Tally
from liquidmm.evaluate.report import Journal, Report

SETTINGS = {"seed": 0, "n": 2}


def test_json_and_table() -> None:
    report = Report(task="captions", settings=dict(SETTINGS))
    report.share("trained", Tally(right=2, n=4))
    report.number("chance", 0.0736, "%")
    report.number("lost", math.inf, "dB")
    result = report.to_dict()
    assert result["figures"] == {
        "trained": {"value": 50.0, "unit": "%"},
        "chance": {"value": 0.0736, "unit": "%"},
        "lost": {"value": None, "unit": "dB"},
    }
    assert result["counts"] == {"trained": {"right": 2, "n": 4, "low": 15.0, "high": 85.0}}
    assert result["settings"] == SETTINGS
    json.dumps(result, allow_nan=False)
    assert report.to_table().splitlines() == [
        "captions",
        "  trained         50 %  (2 of 4; 95 % interval 15.0 to 85.0)",
        "  chance      0.0736 %",
        "  lost           inf dB",
        "  seed 0, n 2",
    ]


def test_only_missing_answers_are_made(tmp_path: Path) -> None:
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


def test_answers_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(LiquidError, match=r"answers\.jsonl: can't be written \(Is a directory\)"):
        Journal(tmp_path, {"n": 2}).texts(["a"], lambda missing: ["one"])


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).texts(["a"], lambda _: ["one"])
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"key": "b", "te')
    assert Journal(tmp_path, SETTINGS).texts(["a", "b"], lambda _: ["two"]) == ["one", "two"]
    assert Journal(tmp_path, SETTINGS).texts(["b"], lambda _: ["three"]) == ["two"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).texts(["a"], lambda _: ["one"])
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        Journal(tmp_path, {"seed": 1, "n": 2})


def test_only_missing_pictures_are_made(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def make(missing: list[int]) -> list[Image.Image]:
        asked.append(missing)
        return [Image.new("RGB", (4, 4), (i, 0, 0)) for i in missing]

    journal = Journal(tmp_path, SETTINGS)
    journal.pictures(["part/0", "part/1"], make)
    (tmp_path / "part" / "0.png").unlink()
    images = Journal(tmp_path, SETTINGS).pictures(["part/0", "part/1"], make)
    assert asked == [[0, 1], [0]]
    assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 0), (1, 0, 0)]
    Journal(None, SETTINGS).pictures(["part/0"], make)
    assert asked[-1] == [0]
