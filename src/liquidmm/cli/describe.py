"""`liquid describe`: print a caption of an image to stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from liquidmm.cli.options import load_model, model_options


@click.command("describe")
@click.argument("image", type=click.Path(path_type=Path))
@model_options
def command(image: Path, **model: Any) -> None:
    """Describe an image."""
    from liquidmm.image_tokenizer.images import open_image

    opened = open_image(image)
    click.echo(load_model(**model).describe(opened))
