"""`liquid ask`: a question about a picture.

Contract: prints the answer and nothing else on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from liquidmm.cli.options import load_model, model_options
from liquidmm.errors import DataError


@click.command("ask")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@model_options
def command(image: Path, question: str, **model: Any) -> None:
    """Answer a question about a picture."""
    from liquidmm.vision.pixels import open_image

    if not question.strip():
        raise DataError("question: is empty. Ask something about the picture.")
    picture = open_image(image)
    click.echo(load_model(**model).ask(picture, question))
