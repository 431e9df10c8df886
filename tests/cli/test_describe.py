from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.generate.liquid import Liquid
from liquidmm.model.checkpoint import Checkpoint


def test_describe_prints_python_caption(
    checkpoint_folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    Image.new("RGBA", (30, 20), (0, 255, 0, 128)).save(tmp_path / "green.png")
    arguments = [str(tmp_path / "green.png"), "--checkpoint", str(checkpoint_folder)]
    result = CliRunner().invoke(main, ["describe", *arguments, "--device", "cpu"])
    assert result.exit_code == 0
    caption = Liquid(checkpoint).describe(tmp_path / "green.png")
    assert result.stdout == caption + "\n"
    assert result.stderr == ""
