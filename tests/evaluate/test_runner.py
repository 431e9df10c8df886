"""Running a task, with a task that asks a model about each of its lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.evaluate.metrics import Accuracy
from liquidmm.evaluate.report import Report
from liquidmm.evaluate.runner import Context, EvaluateConfig, Task, require_file, run
from liquidmm.generate.sampling import SamplingConfig


class Echo:
    """A model that counts what it is asked."""

    sampling = SamplingConfig(guidance=3.0)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask_many(self, questions: Any) -> list[str]:
        self.asked += [question for _, question in questions]
        return [question for _, question in questions]


def ask(context: Context) -> None:
    lines = (context.data / "lines.jsonl").read_text().split()[: context.limit]
    context.sampling()
    for _, chunk in context.chunks("lines", lines):
        answers = context.journal.texts(
            list(chunk),
            lambda missing, chunk=chunk: context.model().ask_many(
                [(Image.new("RGB", (1, 1)), chunk[i]) for i in missing]
            ),
        )
        context.report.add_accuracy("all", Accuracy.of(answer == "yes" for answer in answers))


def write(context: Context) -> None:
    assert context.config.out is not None
    context.config.out.mkdir()


TASKS = {
    "ask": Task(run=ask, data=Path("nowhere"), limit=3),
    "write": Task(run=write, data=Path("nowhere"), limit=1, has_journal=False),
}


@pytest.fixture
def model() -> Echo:
    return Echo()


@pytest.fixture
def evaluate(tmp_path: Path, model: Echo) -> Any:
    for name, text in (("data/lines.jsonl", "yes no maybe yes"), ("checkpoint/config.json", "{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)

    def call(name: str, **options: Any) -> Report:
        options = {"data": tmp_path / "data", "checkpoint": tmp_path / "checkpoint", **options}
        return run(name, TASKS, EvaluateConfig(**options), lambda folder, device: model)

    return call


def test_run_uses_defaults_of_task_and_reports_settings(evaluate: Any, model: Echo) -> None:
    report = evaluate("ask", batch_size=3, guidance=5.0)
    assert model.asked == ["yes", "no", "maybe"]
    assert report.counts["all"] == Accuracy(right=1, n=3)
    assert report.settings["limit"] == 3
    assert report.settings["sampling"]["guidance"] == 5.0
    assert "dtype" not in report.settings


def test_run_interrupted_asks_only_what_is_missing(
    evaluate: Any, model: Echo, tmp_path: Path
) -> None:
    first = evaluate("ask", out=tmp_path / "out")
    assert evaluate("ask", out=tmp_path / "out").metrics == first.metrics
    assert len(model.asked) == 3
    assert json.loads((tmp_path / "out/ask/result.json").read_text()) == first.to_dict()


def test_run_with_other_settings_in_same_folder_rejected(evaluate: Any, tmp_path: Path) -> None:
    evaluate("ask", out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out/ask.*\(seed\)"):
        evaluate("ask", seed=1, out=tmp_path / "out")
    with (tmp_path / "data/lines.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"out/ask.*\(data_fingerprint\)"):
        evaluate("ask", out=tmp_path / "out")


def test_fingerprint_of_images_changes_with_names_and_sizes(evaluate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    seen = set()
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("b.png", b"22")):
        (folder / name).write_bytes(content)
        report = evaluate("write", data=folder, out=tmp_path / f"out{len(seen)}")
        seen.add(report.settings["data_fingerprint"])
    assert len(seen) == 3


def test_task_without_journal_writes_to_out_itself(evaluate: Any, tmp_path: Path) -> None:
    evaluate("write", out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_task_gets_a_suggestion(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match=r"'aks'.*'ask'"):
        evaluate("aks")


def test_missing_checkpoint_rejected(evaluate: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing.*--checkpoint"):
        evaluate("ask", checkpoint=tmp_path / "nothing")


def test_missing_data_file_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text\.jsonl.*--data"):
        require_file(tmp_path, "text.jsonl")


@pytest.mark.parametrize("options", [{"limit": 0}, {"batch_size": 0}, {"seed": -1}])
def test_config_out_of_range_rejected(options: dict[str, int]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ConfigError, match=f"{name}.*{value}"):
        EvaluateConfig(**options)  # type: ignore[arg-type]
