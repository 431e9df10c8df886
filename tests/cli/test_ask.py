from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.generate.liquid import Liquid
from liquidmm.model.checkpoint import Checkpoint


def test_ask_prints_python_answer(
    checkpoint_folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "blue.png")
    arguments = [str(tmp_path / "blue.png"), "How many?", "--checkpoint", str(checkpoint_folder)]
    result = CliRunner().invoke(main, ["ask", *arguments, "--device", "cpu"])
    assert result.exit_code == 0
    answer = Liquid(checkpoint).ask(tmp_path / "blue.png", "How many?")
    assert result.stdout == answer + "\n"
    assert result.stderr == ""


def test_ask_about_several_images(
    checkpoint_folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{color}.png" for color in ("blue", "red")]
    for path in paths:
        Image.new("RGB", (30, 20), path.stem).save(path)
    arguments = [*map(str, paths), "Which?", "--checkpoint", str(checkpoint_folder)]
    result = CliRunner().invoke(main, ["ask", *arguments, "--device", "cpu"])
    assert result.exit_code == 0
    assert result.stdout == Liquid(checkpoint).ask([*paths], "Which?") + "\n"
