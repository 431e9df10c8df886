"""`liquid describe`: what a picture shows.

Contract: prints the caption and nothing else on stdout.
"""

from __future__ import annotations

from pathlib import Path

import click

from liquidmm.cli.options import load_model, model_options


@click.command("describe")
@click.argument("image", type=click.Path(path_type=Path))
@model_options
def command(image: Path, checkpoint: Path | None, device: str | None) -> None:
    """Say in words what a picture shows."""
    from liquidmm.vision.pixels import open_image

    picture = open_image(image)
    click.echo(load_model(checkpoint, device).describe(picture))
