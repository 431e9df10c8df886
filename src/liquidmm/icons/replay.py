"""Replay: what an untouched language model says, kept as conversations to train on.

Contract: ``build_replay`` asks about the words of a folder of ``build_text`` and writes a folder::

    chat.jsonl     one conversation of two turns for each answer, in the order of the prompts
    summary.json   counts

A model that learns pictures forgets less of its language when its own answers are in the mixture
(rehearsal, Robins 1995; for instruction tuning Scialom et al. 2022, arXiv:2205.12393). Who answers
is handed in, so equal answers give equal bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liquidmm.data.readers import read_jsonl
from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder

Answer = Callable[[Sequence[str]], Sequence[str]]
"""Answers each of some prompts; what has no usable answer gets an empty one, and is left out."""

REQUESTS = (
    "Tell me something about {}.",
    "Write a sentence with the word {}.",
    "Explain {} to a child.",
    "Write two lines of a story about {}.",
    "What do people use {} for?",
    "Give me three facts about {}.",
    "What comes to your mind when you hear {}?",
    "Ask me a question about {}.",
)
"""What the model is asked for; a word takes the place of the braces."""

# How the questions about words are called in a folder of text.
_DEFINED = "define/"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """How much is asked, and under whose name the answers go."""

    count: int = 1000
    """Number of prompts; words and requests are chosen by a hash."""
    batch_size: int = 16
    """Prompts answered at once."""
    source: str
    """Name of the model."""
    license: str = ""
    """SPDX name of the licence of the model, whose terms bind its answers; empty when unknown."""
    seed: int = 0
    """Another seed is another choice."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A number is out of range.
        """
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give 1 or more.")


def replay_prompts(text: Path, config: ReplayConfig) -> list[str]:
    """Choose what is asked.

    Args:
        text: Folder ``build_text`` wrote.
        config: How much.

    Returns:
        Prompts, each once.

    Raises:
        DataError: The folder can't be read, or has fewer words than wanted prompts.
    """
    words = {
        record.key.removeprefix(_DEFINED)
        for record in read_jsonl(text / "chat.jsonl")
        if record.key.startswith(_DEFINED) and record.split == "train"
    }
    ranked = sorted(words, key=lambda word: _hash(f"{config.seed}/{word}"))
    if len(ranked) < config.count:
        raise DataError(
            f"{text}: has {len(ranked)} words, {config.count} prompts are wanted (count). "
            "Lower count."
        )
    return [
        REQUESTS[int(_hash(f"{config.seed}/request/{word}")[:8], 16) % len(REQUESTS)].format(word)
        for word in ranked[: config.count]
    ]


def build_replay(
    text: Path,
    out: Path,
    answer: Answer,
    config: ReplayConfig,
    *,
    overwrite: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Write the answers of a model as conversations.

    Args:
        text: Folder ``build_text`` wrote.
        out: Folder to write.
        answer: Who answers.
        config: How much.
        overwrite: Replace ``out`` when it exists.
        progress: Wraps the list of batches, to show a bar.

    Returns:
        What is in ``summary.json``.

    Raises:
        DataError: ``text`` can't be read, or no prompt was answered.
        LiquidError: ``out`` is in the way, or the disk is full.
    """
    prompts = replay_prompts(text, config)
    counts: Counter[str] = Counter()
    with atomic_folder(out, overwrite=overwrite) as folder:
        with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
            for start in progress(range(0, len(prompts), config.batch_size)):
                batch = prompts[start : start + config.batch_size]
                for prompt, answered in zip(batch, answer(batch), strict=True):
                    said = answered.strip()
                    if not said:
                        counts["left out"] += 1
                        continue
                    counts["answers"] += 1
                    counts["characters"] += len(said)
                    record = _record(prompt, said, config)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not counts["answers"]:
            raise DataError(f"{config.source}: gave no answers. Choose a model that can chat.")
        summary = {
            "conversations": counts["answers"],
            "characters": counts["characters"],
            "left_out": counts["left out"],
            "config": asdict(config),
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _record(prompt: str, said: str, config: ReplayConfig) -> dict[str, Any]:
    return {
        "key": f"replay/{_hash(prompt)[:12]}",
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": said},
        ],
        "source": config.source,
        "license": config.license,
        "split": "train",
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
