"""`liquid inspect`: show what a folder of encoded shards contains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL import Image

    from liquidmm.data.samples import Sample
    from liquidmm.data.shards import Shards
    from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

_COLUMNS = 8
_MIN_WIDTH = 128
"""Smaller images are enlarged to about this width, in pixels."""


@click.command("inspect")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a contact sheet of images decoded from their codes to this file.",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    default=48,
    show_default=True,
    help="Number of images on the sheet.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path),
    help="Image tokenizer or Liquid checkpoint that encoded the folder.  [default: the default "
    "model's]",
)
def command(
    folder: Path, as_json: bool, sheet: Path | None, images: int, tokenizer: Path | None
) -> None:
    """Show what a folder of encoded shards contains."""
    from liquidmm.data.manifest import summary

    found = summary(folder)
    if sheet is not None:
        _write_sheet(folder, sheet, images, tokenizer)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            click.echo(f"{name:16} {value}")
            continue
        click.echo(name)
        for key, number in value.items():
            click.echo(f"  {key or '(none)':24} {number}")


def _write_sheet(folder: Path, path: Path, count: int, tokenizer: Path | None) -> None:
    from liquidmm.cli.options import check_image_path, save_image
    from liquidmm.data.shards import read_shards
    from liquidmm.errors import DataError
    from liquidmm.generate.liquid import DEFAULT_MODEL
    from liquidmm.image_tokenizer.images import contact_sheet
    from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
    from liquidmm.model.checkpoint import IMAGE_TOKENIZER_FOLDER

    check_image_path(path)
    source = tokenizer or DEFAULT_MODEL
    inside = source / IMAGE_TOKENIZER_FOLDER
    loaded = load_image_tokenizer(inside if inside.is_dir() else source)
    shards = read_shards(folder)
    fingerprint = shards.manifest.provenance.fingerprint
    if fingerprint != loaded.fingerprint:
        raise DataError(
            f"{folder}: encoded with the image tokenizer {fingerprint}, not with "
            f"{loaded.fingerprint}. Pass the tokenizer it was encoded with (--tokenizer)."
        )
    samples = list(islice(_with_images(shards, count), count))
    if not samples:
        raise DataError(f"{folder}: contains no images. Remove --sheet.")
    decoded = [_decode(sample, loaded) for sample in samples]
    captions = [sample.captions[0] if sample.captions else sample.key for sample in samples]
    save_image(contact_sheet(decoded, _COLUMNS, captions), path)
    click.echo(f"{path}: {len(samples)} images decoded from their codes", err=True)


def _with_images(shards: Shards, count: int) -> Iterator[Sample]:
    """Yield captioned images, spread evenly over the folder, then those of conversations."""
    pairs, chats = shards.of_kind("image_text"), shards.of_kind("chat")
    shown = min(count, len(pairs))
    spread = (pairs[number * len(pairs) // shown] for number in range(shown))
    return (sample for sample in chain(spread, chats) if sample.image_codes)


def _decode(sample: Sample, tokenizer: ImageTokenizer) -> Image.Image:
    import torch
    from PIL import Image

    from liquidmm.image_tokenizer.images import to_image

    codes = torch.from_numpy(sample.image_codes[0].astype("int64"))  # (h, w)
    image = to_image(tokenizer.decode(codes.unsqueeze(0))[0])
    scale = max(1, round(_MIN_WIDTH / image.width))
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)
