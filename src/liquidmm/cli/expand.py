"""`liquid expand`: make a Liquid checkpoint of a language model.

Contract: the folder written goes to stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from liquidmm.cli.options import Size

_INITS = click.Choice(["mean", "normal", "codebook"])
_DTYPES = click.Choice(["float32", "bfloat16", "float16"])


@click.command("expand")
@click.argument("base")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--codebook-size", type=int, help="Image codes.  [default: the image tokenizer's, or 8192]"
)
@click.option("--init", type=_INITS, default="mean", show_default=True, help="Start of new rows.")
@click.option(
    "--spread", default=1.0, show_default=True, help="Deviation of normal and codebook starts."
)
@click.option("--image-tokenizer", type=click.Path(path_type=Path), help="Put it in as well.")
@click.option(
    "--size", "sizes", type=Size(), multiple=True, help="A picture size to be trained on."
)
@click.option("--dtype", type=_DTYPES, help="Number type of the weights.  [default: the base's]")
@click.option("--seed", default=0, show_default=True, help="Seed of random starts.")
def command(base: str, out: Path, **options: Any) -> None:
    """Make a Liquid checkpoint of any decoder language model.

    BASE is a Hugging Face model folder, a .gguf file or owner/name on the hub; OUT is the folder to
    write. The logits of the base's own ids stay as they are.
    """
    from liquidmm.model.expand import ExpandConfig, expand

    expand(base, out, ExpandConfig(**options))
    click.echo(out)
