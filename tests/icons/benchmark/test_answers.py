import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.errors import DataError


def test_captions_count_concepts_and_styles(evaluate: Any, model: Any, tmp_path: Path) -> None:
    report = evaluate("captions", out=tmp_path)
    result = report.to_dict()
    assert {name: metric["value"] for name, metric in result["figures"].items()} == {
        "trained": 100.0,
        "trained_style": 100.0,
        "held_out_pairs": 100.0,
        "held_out_pairs_style": 100.0,
        "chance": pytest.approx(100 / 6, abs=1e-4),
        "chance_style": 50.0,
    }
    assert result["counts"]["trained"]["n"] == 9
    evaluate("captions", out=tmp_path)
    assert model.described == 10


def test_captions_of_another_concept_are_wrong(evaluate: Any, model: Any) -> None:
    model.describe = lambda image: "a green apple, noto style"
    report = evaluate("captions")
    # Two of the nine trained icons are green apples; "apple" is not one.
    assert (report.counts["trained"].right, report.counts["trained"].n) == (2, 9)
    assert report.counts["held_out_pairs_style"].right == 0


def test_captions_count_after_the_colon(evaluate: Any, model: Any) -> None:
    model.describe = lambda image: "a tree: apple, noto style"
    assert evaluate("captions").counts["trained"].right == 2


def test_scenes_count_verdicts_by_kind(evaluate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")

    def line(key: str, split: str, *turns: tuple[str, str, str]) -> str:
        messages = []
        for _, question, answer in turns:
            mark = "" if messages else "<image>\n"
            messages.append({"role": "user", "content": mark + question})
            messages.append({"role": "assistant", "content": answer})
        row = {
            "key": key,
            "split": split,
            "messages": messages,
            "images": ["0.png"],
            "tasks": [task for task, _, _ in turns],
        }
        return json.dumps(row) + "\n"

    (folder / "chat.jsonl").write_text(
        line("a", "train", ("count", "How many?", "two"))
        + line(
            "b",
            "held_out",
            ("presence", "Is there a dog?", "a dog at the top left: yes"),
            ("relation", "Is the dog to the left of the cat?", "no"),
            ("relation", "Is the dog above the cat?", "a dog at the top left: yes"),
            ("count", "How many dogs?", "two"),
        )
        + line(
            "c", "held_out", ("presence", "Is there a cat?", "no"), ("count", "How many?", "two")
        )
        + line("d", "held_out", ("count", "How many dogs?", "one"))
    )
    report = evaluate("scenes", data=folder)
    counts = {name: (accuracy.right, accuracy.n) for name, accuracy in report.counts.items()}
    assert counts == {
        "all": (4, 7),
        "above_below": (1, 1),
        "above_below_chance": (1, 1),
        "count": (2, 3),
        "count_chance": (2, 3),
        "left_right": (0, 1),
        "left_right_chance": (1, 1),
        "presence": (1, 2),
        "presence_chance": (1, 2),
    }
    assert evaluate("scenes", data=folder, limit=3).counts["all"].n == 3


def test_scenes_without_task_names_rejected(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "<image>Who?"}, '
        '{"role": "assistant", "content": "me"}], "images": ["0.png"], "split": "held_out"}\n'
    )
    with pytest.raises(DataError, match="chat.jsonl:1: 'tasks'.*None"):
        evaluate("scenes", data=tmp_path)
