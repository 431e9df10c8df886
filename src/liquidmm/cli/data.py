"""`liquid data`: inspect and validate encoded shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.group("data")
def command() -> None:
    """Inspect and validate encoded shards."""


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
    from liquidmm.cli.options import check_picture_path, save_picture
    from liquidmm.data.sheet import sheet
    from liquidmm.generate.load import DEFAULT_MODEL
    from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
    from liquidmm.model.checkpoint import IMAGE_TOKENIZER_FOLDER

    check_picture_path(path)
    source = tokenizer or DEFAULT_MODEL
    inside = source / IMAGE_TOKENIZER_FOLDER
    loaded = load_image_tokenizer(inside if inside.is_dir() else source)
    save_picture(sheet(folder, loaded, pictures), path)
    click.echo(f"{path}: pictures decoded from their codes", err=True)


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
