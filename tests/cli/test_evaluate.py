import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from liquidmm.cli.evaluate import command, tasks
from liquidmm.evaluate import runner
from liquidmm.evaluate.metrics import Accuracy
from liquidmm.evaluate.report import Report


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations that reach the runner, which measures nothing."""
    configs: list[Any] = []

    def run(task: str, tasks: Any, config: Any, progress: Any) -> Report:
        configs.append(config)
        progress("trained", 0, 2)
        progress("trained", 2, 2)
        progress("unguided", 1, 1)
        report = Report(task=task, settings={"seed": config.seed})
        report.add_accuracy("trained", Accuracy(right=1, n=2))
        return report

    monkeypatch.setattr(runner, "run", run)
    return configs


def test_json_is_the_only_output_on_stdout(seen: list[Any]) -> None:
    result = CliRunner().invoke(command, ["captions", "--json", "--seed", "3", "--data", "icons"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"] == {"trained": {"value": 50.0, "unit": "%"}}
    assert "trained" in result.stderr
    assert (seen[0].seed, seen[0].data, seen[0].limit) == (3, Path("icons"), None)
    assert seen[0].checkpoint.name == "default_model"


def test_table_with_counts(seen: list[Any]) -> None:
    result = CliRunner().invoke(command, ["captions", "--checkpoint", "runs/a", "--limit", "2"])
    assert result.stdout.startswith("captions\n  trained")
    assert "1 of 2" in result.stdout
    assert (seen[0].checkpoint, seen[0].limit) == (Path("runs/a"), 2)


def test_help_names_every_task() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for name in tasks():
        # Each on its own line, because click wraps paragraphs by default.
        assert any(line.strip().startswith(f"{name} ") for line in text.splitlines())
