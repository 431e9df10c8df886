from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from liquidmm.cli import main


@pytest.fixture
def run(checkpoint_folder: Path):
    def invoke(*arguments: object) -> Result:
        options = ["--checkpoint", str(checkpoint_folder), "--device", "cpu"]
        return CliRunner().invoke(main, ["generate", *map(str, arguments), *options])

    return invoke


def test_one_picture_is_written_and_its_path_printed(run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "apple.png"
    result = run("a red apple", "-o", out)
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    with Image.open(out) as image:
        assert (image.size, image.mode, image.format) == ((16, 16), "RGB", "PNG")
    assert [path.name for path in out.parent.iterdir()] == ["apple.png"]


def test_the_same_seed_gives_the_same_file_and_replaces_it(run, tmp_path: Path) -> None:
    out, other = tmp_path / "a.png", tmp_path / "b.png"
    arguments = ["a red apple", "--temperature", 3, "--top-k", 0, "--top-p", 1]
    assert run(*arguments, "-o", out, "--seed", 5).exit_code == 0
    first = out.read_bytes()
    out.write_text("something else")
    assert run(*arguments, "-o", out, "--seed", 5).exit_code == 0
    assert out.read_bytes() == first
    assert run(*arguments, "-o", other, "--seed", 6).exit_code == 0
    assert other.read_bytes() != first


def test_n_pictures_are_numbered_and_take_the_next_seeds(run, tmp_path: Path) -> None:
    result = run("an apple", "-n", 3, "-o", tmp_path / "x.png", "--seed", 7)
    paths = [tmp_path / f"x-{number}.png" for number in (1, 2, 3)]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    single = tmp_path / "single.png"
    assert run("an apple", "-o", single, "--seed", 8).exit_code == 0
    assert single.read_bytes() == paths[1].read_bytes()


def test_a_grid_is_one_file(run, tmp_path: Path) -> None:
    result = run("an apple", "-n", 4, "--grid", "-o", tmp_path / "x.webp", "--guidance", 1)
    assert result.stdout == f"{tmp_path / 'x.webp'}\n"
    with Image.open(tmp_path / "x.webp") as image:
        assert image.width == image.height > 32


def test_a_trained_size_is_taken_and_a_malformed_one_is_wrong_usage(run, tmp_path: Path) -> None:
    assert run("an apple", "--size", "16x16", "-o", tmp_path / "x.png").exit_code == 0
    result = run("an apple", "--size", "large", "-o", tmp_path / "y.png")
    assert result.exit_code == 2
    assert "'large' is no size. Write width x height, as 512x512." in result.stderr


def test_help_and_parsing_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from liquidmm.cli import generate, describe, ask, chat\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
