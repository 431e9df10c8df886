"""`liquid generate`: from words to a picture file.

Contract: prints the path of every file it wrote, one per line; a file appears whole or not at all,
and one that exists is replaced. The same seed and settings give the same picture.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liquidmm.cli.options import (
    Size,
    check_picture_path,
    load_model,
    model_options,
    save_picture,
)
from liquidmm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image


@click.command("generate")
@click.argument("prompt")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out.png"),
    show_default=True,
    help="File to write; one that exists is replaced.",
)
@click.option(
    "-n", "count", type=int, default=1, show_default=True, help="Pictures, as out-1.png, ..."
)
@click.option("--grid", is_flag=True, help="Write all pictures into one file, side by side.")
@click.option("--size", type=Size(), help="A size the model was trained on; else its first.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picture i takes seed + i.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1 is unguided.")
@click.option("--temperature", type=float, help="Below 1 is bolder, above 1 is wilder.")
@click.option("--top-k", type=int, help="Draw from the k likeliest codes; 0 is off.")
@click.option("--top-p", type=float, help="Draw from the likeliest share p of codes; 1 is off.")
@model_options
def command(**options: Any) -> None:
    """Draw a picture from words.

    Settings that are not given are those the model was measured with.
    """
    settings = {
        name: options[name]
        for name in ("guidance", "temperature", "top_k", "top_p")
        if options[name] is not None
    }
    paths = _paths(options["out"], options["count"], grid=options["grid"])
    _check(options, settings)
    liquid = load_model(options["checkpoint"], options["image_tokenizer"], options["device"])
    images = _draw(liquid, options, dataclasses.replace(liquid.sampling, **settings))
    if options["grid"]:
        from liquidmm.vision.pixels import contact_sheet

        images = [contact_sheet(images, columns=math.ceil(math.sqrt(len(images))))]
    for image, path in zip(images, paths, strict=True):
        save_picture(image, path)
        click.echo(path)


def _paths(out: Path, count: int, *, grid: bool) -> list[Path]:
    if count < 1:
        raise ConfigError(f"n: must be at least 1 ({count}). Ask for one picture or more.")
    check_picture_path(out)
    if count == 1 or grid:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]


def _check(options: dict[str, Any], settings: dict[str, Any]) -> None:
    """Find what is wrong before the model is loaded."""
    from liquidmm.generate.sampling import SamplingConfig

    if not options["prompt"].strip():
        raise DataError("prompt: is empty. Describe the picture in a few words.")
    SamplingConfig(**settings)


def _draw(liquid: Any, options: dict[str, Any], sampling: Any) -> list[Image]:
    from tqdm import tqdm

    count = options["count"]
    with tqdm(unit="code", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        images: list[Image] = liquid.draw_many(
            [options["prompt"]] * count,
            size=options["size"],
            seeds=[options["seed"] + number for number in range(count)],
            sampling=sampling,
            progress=progress,
        )
    return images
