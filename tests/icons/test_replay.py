from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquidmm.data.readers import read_jsonl
from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.replay import REQUESTS, ReplayConfig, build_replay, replay_prompts

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


def test_each_word_is_asked_about_once_and_none_held_out(text):
    prompts = replay_prompts(text, config())
    assert prompts == replay_prompts(text, config())
    fits = {request.format(word) for request in REQUESTS for word in WORDS}
    assert len(prompts) == 5
    assert set(prompts) <= fits
    assert {word for word in WORDS if any(word in prompt for prompt in prompts)} == set(WORDS)
    assert replay_prompts(text, config(count=3)) == prompts[:3]
    assert replay_prompts(text, config(seed=1)) != prompts


def test_answers_become_conversations(text, tmp_path):
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


def test_a_model_that_says_nothing_leaves_nothing_behind(text, tmp_path):
    with pytest.raises(DataError, match="a model: gave no answers. Choose a model"):
        build_replay(text, tmp_path / "replay", lambda prompts: [""] * len(prompts), config())
    assert not (tmp_path / "replay").exists()


def test_too_few_words(text):
    with pytest.raises(DataError, match=r"has 5 words, 6 prompts are wanted \(count\)"):
        replay_prompts(text, config(count=6))


@pytest.mark.parametrize("name", ["count", "batch_size"])
def test_bad_numbers(name):
    with pytest.raises(ConfigError, match=rf"{name}: is 0\. Give 1 or more"):
        config(**{name: 0})
