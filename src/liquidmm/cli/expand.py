"""The command `liquid expand`."""

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
    "--codebook-size",
    type=int,
    help="Number of image tokens.  [default: the image tokenizer's, or 8192]",
)
@click.option(
    "--init", type=_INITS, default="mean", show_default=True, help="Initial values of the new rows."
)
@click.option(
    "--init-std",
    default=1.0,
    show_default=True,
    help="Standard deviation for --init normal and codebook, relative to the old rows.",
)
@click.option(
    "--image-tokenizer",
    type=click.Path(path_type=Path),
    help="Image tokenizer to include in the checkpoint.",
)
@click.option(
    "--size", "sizes", type=Size(), multiple=True, help="Size of the training images; repeatable."
)
@click.option("--dtype", type=_DTYPES, help="dtype of the saved weights.  [default: as in BASE]")
@click.option("--seed", default=0, show_default=True, help="Random seed.")
def command(base: str, out: Path, **options: Any) -> None:
    """Turn a decoder language model into a Liquid checkpoint.

    BASE is a Hugging Face model folder, a .gguf file or owner/name on the hub. OUT is the folder to
    write; its path is printed. The logits of the base's own tokens do not change.
    """
    from liquidmm.model.expand import ExpandConfig, expand

    expand(base, out, ExpandConfig(**options))
    click.echo(out)
