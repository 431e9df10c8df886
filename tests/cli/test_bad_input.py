"""What bad input gets: one line that says where, what and what to do; exit code 1; no file."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main


@dataclass(frozen=True, kw_only=True)
class Case:
    command: str
    """Blank-separated; {tmp} is the scratch folder, {checkpoint} a checkpoint, _ a blank."""
    words: tuple[str, ...]
    """What the line must contain."""


RUN = """
checkpoint = "checkpoint"
out = "out"
[train]
stepz = 3
[[data.sources]]
path = "shards"
task = "text"
"""
MODEL = "--checkpoint {checkpoint} --device cpu"
OUT = "-o {tmp}/out.png"
CASES = {
    "missing image, describe": Case(
        command=f"describe {{tmp}}/none.png {MODEL}", words=("none.png", "no such file", "Check")
    ),
    "missing image, ask": Case(
        command=f"ask {{tmp}}/none.png What? {MODEL}", words=("none.png", "no such file")
    ),
    "broken image": Case(
        command=f"describe {{tmp}}/broken.png {MODEL}", words=("broken.png", "broken")
    ),
    "empty image": Case(
        command=f"describe {{tmp}}/empty.png {MODEL}", words=("empty.png", "empty")
    ),
    "text instead of an image": Case(
        command=f"describe {{tmp}}/text.png {MODEL}", words=("text.png", "not an image")
    ),
    "folder instead of an image": Case(
        command=f"describe {{tmp}} {MODEL}", words=("is a folder", "Use a")
    ),
    "empty prompt": Case(
        command=f"generate _ {OUT} {MODEL}", words=("prompt", "empty", "Describe")
    ),
    "empty question": Case(
        command=f"ask {{tmp}}/good.png _ {MODEL}", words=("question", "empty", "Ask")
    ),
    "prompt longer than the context": Case(
        command=f"generate {'apple-' * 300} {OUT} {MODEL}",
        words=("prompt", "16 image tokens", "context of 256 tokens", "Shorten"),
    ),
    "question longer than the context": Case(
        command=f"ask {{tmp}}/good.png {'apple-' * 300} {MODEL}",
        words=("prompt", "context of 256 tokens", "Shorten"),
    ),
    "untrained size": Case(
        command=f"generate apple --size 64x32 {OUT} {MODEL}",
        words=("size", "64x32", "Choose one of: 16x16"),
    ),
    "no pictures": Case(
        command=f"generate apple -n 0 {OUT} {MODEL}", words=("n:", "at least 1, got 0")
    ),
    "guidance below 0": Case(
        command=f"generate apple --guidance -1 {OUT} {MODEL}",
        words=("guidance", "-1", "at least 0"),
    ),
    "temperature of 0": Case(
        command=f"generate apple --temperature 0 {OUT} {MODEL}",
        words=("temperature", "above 0"),
    ),
    "top-p above 1": Case(
        command=f"generate apple --top-p 1.5 {OUT} {MODEL}",
        words=("top_p", "1.5", "at most 1"),
    ),
    "top-k below 0": Case(
        command=f"generate apple --top-k -2 {OUT} {MODEL}",
        words=("top_k", "-2", "at least 0"),
    ),
    "seed below 0": Case(
        command=f"generate apple --seed -1 {OUT} {MODEL}", words=("seed", "-1", "from 0")
    ),
    "unknown device": Case(
        command=f"generate apple {OUT} --checkpoint {{checkpoint}} --device abacus",
        words=("device", "'abacus'", "cpu"),
    ),
    "unknown picture format": Case(
        command=f"generate apple -o {{tmp}}/out.xyz {MODEL}", words=("out.xyz", "'.xyz'", ".png")
    ),
    "picture format that can't be written": Case(
        command=f"generate apple -o {{tmp}}/out.h5 {MODEL}", words=("out.h5", "'.h5'", ".png")
    ),
    "folder as output": Case(
        command=f"generate apple -o {{tmp}} {MODEL}", words=("is a folder", "Name a file")
    ),
    "file in the way of a folder": Case(
        command=f"generate apple -o {{tmp}}/text.png/out.png {MODEL}",
        words=("out.png", "cannot be written", "choose another path"),
    ),
    "missing checkpoint": Case(
        command=f"generate apple {OUT} --checkpoint {{tmp}}/nowhere",
        words=("nowhere", "no such folder", "Check"),
    ),
    "folder that is no checkpoint": Case(
        command=f"generate apple {OUT} --checkpoint {{tmp}}/folder",
        words=("folder", "no config.json", "Check"),
    ),
    "language model without pictures": Case(
        command="describe {tmp}/good.png --checkpoint {tmp}/../base",
        words=("base", "liquid expand"),
    ),
    "checkpoint without weights": Case(
        command=f"generate apple {OUT} --checkpoint {{tmp}}/hollow", words=("hollow", "weights")
    ),
    "wrong key in a run file": Case(
        command="train {tmp}/run.toml", words=("run.toml", "stepz", "Did you mean 'steps'?")
    ),
    "missing run file": Case(command="train {tmp}/none.toml", words=("none.toml",)),
}


@pytest.fixture
def tmp(tmp_path: Path, checkpoint_folder: Path, base_folder: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    Image.effect_noise((20, 20), 50).convert("RGB").save(folder / "good.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:200])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture at all")
    (folder / "run.toml").write_text(RUN)
    (folder / "folder").mkdir()
    hollow = folder / "hollow"
    hollow.mkdir()
    for file in checkpoint_folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (hollow / file.name).write_bytes(file.read_bytes())
    (tmp_path / "base").symlink_to(base_folder)
    return folder


def words_of(case: Case, tmp: Path, checkpoint: Path) -> list[str]:
    parts = case.command.format(tmp=tmp, checkpoint=checkpoint).split(" ")
    return [" " if part == "_" else part for part in parts]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(case: Case, tmp: Path, checkpoint_folder: Path) -> None:
    before = files_in(tmp)
    result = CliRunner().invoke(main, words_of(case, tmp, checkpoint_folder))
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in case.words:
        assert word in line
    assert result.stdout == ""
    assert files_in(tmp) == before


def test_a_full_disk_while_saving(
    tmp: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Any, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp / "out.png"
    out.write_text("an older picture")
    before = files_in(tmp)
    monkeypatch.setattr(Image.Image, "save", full)
    arguments = ["apple", "-o", str(out), "--checkpoint", str(checkpoint_folder)]
    result = CliRunner().invoke(main, ["generate", *arguments, "--device", "cpu"])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {out}: cannot be written (No space left on device). ")
    assert result.stdout == ""
    assert files_in(tmp) == before


@pytest.mark.parametrize("field", ["vocabulary", "sizes"])
def test_a_damaged_layout_names_its_file(field: str, tmp: Path, checkpoint_folder: Path) -> None:
    path = tmp / "hollow" / "processor_config.json"
    data = json.loads(path.read_text())
    data[field] = {"boi": 1} if field == "vocabulary" else "large"
    path.write_text(json.dumps(data))
    arguments = ["apple", "-o", str(tmp / "out.png"), "--checkpoint", str(tmp / "hollow")]
    result = CliRunner().invoke(main, ["generate", *arguments])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {path}")
    assert field in line
