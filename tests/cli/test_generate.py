from __future__ import annotations

import json
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


def test_image_is_written_and_path_printed(run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "apple.png"
    result = run("a red apple", "-o", out)
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    with Image.open(out) as image:
        assert (image.size, image.mode, image.format) == ((16, 16), "RGB", "PNG")
    assert [path.name for path in out.parent.iterdir()] == ["apple.png"]


def test_same_seed_gives_same_file_and_replaces_it(run, tmp_path: Path) -> None:
    out, other = tmp_path / "a.png", tmp_path / "b.png"
    arguments = ["a red apple", "--temperature", 3, "--top-k", 0, "--top-p", 1]
    assert run(*arguments, "-o", out, "--seed", 5).exit_code == 0
    first = out.read_bytes()
    out.write_text("something else")
    assert run(*arguments, "-o", out, "--seed", 5).exit_code == 0
    assert out.read_bytes() == first
    assert run(*arguments, "-o", other, "--seed", 6).exit_code == 0
    assert other.read_bytes() != first


def test_n_images_are_numbered_with_next_seeds(run, tmp_path: Path) -> None:
    result = run("an apple", "-n", 3, "-o", tmp_path / "x.png", "--seed", 7)
    paths = [tmp_path / f"x-{number}.png" for number in (1, 2, 3)]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    single = tmp_path / "single.png"
    assert run("an apple", "-o", single, "--seed", 8).exit_code == 0
    assert single.read_bytes() == paths[1].read_bytes()


def test_grid_is_one_file(run, tmp_path: Path) -> None:
    result = run("an apple", "-n", 4, "--grid", "-o", tmp_path / "x.webp", "--guidance", 1)
    assert result.stdout == f"{tmp_path / 'x.webp'}\n"
    with Image.open(tmp_path / "x.webp") as image:
        assert image.width == image.height > 32


def test_size_trained_accepted_malformed_rejected(run, tmp_path: Path) -> None:
    assert run("an apple", "--size", "16x16", "-o", tmp_path / "x.png").exit_code == 0
    result = run("an apple", "--size", "large", "-o", tmp_path / "y.png")
    assert result.exit_code == 2
    assert "512x512, got 'large'" in result.stderr


def test_help_and_parsing_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from liquidmm.cli import generate, describe, ask, chat\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_input_images_and_previews(run, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    plain, about = tmp_path / "plain.png", tmp_path / "about.png"
    assert run("an apple", "-o", plain, "--temperature", 2).exit_code == 0
    images = ["--image", tmp_path / "red.png", "--image", tmp_path / "red.png"]
    result = run("an apple", "-o", about, "--temperature", 2, "--preview-every", 1, *images)
    assert result.stdout == f"{about}\n"
    assert about.read_bytes() != plain.read_bytes()
    shown = tmp_path / "shown.png"
    assert run("an apple", "-o", shown, "--temperature", 2, "--preview-every", 1).exit_code == 0
    assert shown.read_bytes() == plain.read_bytes()


def test_batch_file_answers_valid_and_reports_invalid(run, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    lines = [
        {"prompt": "an apple", "n": 2, "seed": 7},
        {"mode": "caption", "images": [str(tmp_path / "red.png")], "max_tokens": 5},
        {"mode": "imgae", "prompt": "a"},
        {"prompt": "an apple", "guidence": 2},
        {"mode": "text", "prompt": "Hello", "max_tokens": 3},
    ]
    file = tmp_path / "batch.jsonl"
    file.write_text("\n".join([*map(json.dumps, lines), "", "no json"]))
    result = run("--batch-file", file, "-o", tmp_path / "out")
    assert result.exit_code == 1
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    errors = {row["request"]: row["error"] for row in printed if "error" in row}
    assert set(errors) == {3, 4, 7}
    assert "mode: 'imgae' is unknown. Did you mean 'image'?" in errors[3]
    assert "batch.jsonl:4: guidence: unknown key. Did you mean 'guidance'?" in errors[4]
    assert "batch.jsonl:7: is not valid JSON" in errors[7]
    rows = {(row["request"], row["sample"]): row for row in printed if "error" not in row}
    assert set(rows) == {(1, 1), (1, 2), (2, 1), (5, 1)}
    second = tmp_path / "second.png"
    assert run("an apple", "--seed", 8, "-o", second).exit_code == 0
    assert Path(rows[1, 2]["images"][0]).read_bytes() == second.read_bytes()
    assert rows[2, 1]["images"] == []
    file.write_text(json.dumps(lines[0]))
    result = run("--batch-file", file, "-o", tmp_path / "again")
    assert result.exit_code == 0
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_invalid_combinations_of_options(run, tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    for arguments, message in (
        (["an apple", "--batch-file", file], "PROMPT: cannot be combined with --batch-file"),
        (["--batch-file", file, "--seed", 3], "--seed: cannot be combined with --batch-file"),
        (["--batch-file", file], "batch.jsonl: cannot be read"),
        (["--image", file], "prompt: is empty"),
        (["a", "--preview-every", -1], "preview_every: expected a number of at least 0, got -1"),
        (
            ["a", "--preview-every", 1, "-n", 2],
            "--preview-every: works with one image, but -n is",
        ),
        (["a", "--quantize", "int3"], "quantize: 'int3' is unknown"),
        (["a", "--dtype", "int3"], "dtype: unknown dtype 'int3'"),
        (["a", "--top-k", 17], "top_k: expected an integer from 0 (off) to 16"),
    ):
        result = run(*arguments, "-o", tmp_path / "x.png")
        assert result.exit_code == 1
        assert message in result.stderr, result.stderr
    file.write_text("\n")
    assert "contains no requests" in run("--batch-file", file).stderr
