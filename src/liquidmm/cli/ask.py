"""`liquid ask`: print the answer to a question about one or more images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liquidmm.cli.options import load_model, model_options
from liquidmm.errors import DataError

if TYPE_CHECKING:
    from liquidmm.generate.images import ImageLike


@click.command("ask")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=Path)
@click.argument("question")
@model_options
def command(images: tuple[Path, ...], question: str, **model: Any) -> None:
    """Answer a question about an image.

    Pass several images only if the model was trained on such questions.
    """
    from liquidmm.image_tokenizer.images import open_image

    if not question.strip():
        raise DataError("question: is empty. Ask something about the image.")
    opened: list[ImageLike] = [open_image(image) for image in images]
    click.echo(load_model(**model).ask(opened, question))
