"""`liquid reconstruct`: a picture beside what the image tokenizer keeps of it.

Contract: writes one picture (original, reconstruction) and prints its PSNR and path on stdout.
"""

from __future__ import annotations

from pathlib import Path

import click

from liquidmm.errors import ConfigError

_PATH = click.Path(path_type=Path)


@click.command("reconstruct")
@click.argument("image", type=_PATH)
@click.option("-o", "--out", type=_PATH, required=True, help="Where the picture goes.")
@click.option("--tokenizer", type=_PATH, help="Folder or file of an image tokenizer.")
@click.option("--checkpoint", type=_PATH, help="Folder of a Liquid model; its tokenizer is used.")
@click.option("--size", type=click.IntRange(1), help="Side in pixels; default: the trained one.")
def command(
    image: Path, out: Path, tokenizer: Path | None, checkpoint: Path | None, size: int | None
) -> None:
    """Show a picture beside its reconstruction and print the PSNR.

    The picture is scaled and cropped to a square first. Without --tokenizer or --checkpoint the
    tokenizer of the model that comes with this package is used.
    """
    from liquidmm.cli.options import check_picture_path, save_picture
    from liquidmm.image_tokenizer.images import (
        center_crop,
        open_image,
        psnr,
        side_by_side,
        to_image,
        to_tensor,
    )
    from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer

    check_picture_path(out)
    picture = open_image(image)
    loaded = load_image_tokenizer(_folder(tokenizer, checkpoint))
    size = size or loaded.resolution
    if size % loaded.factor:
        raise ConfigError(
            f"--size: {size} is not divisible by the tokenizer's factor {loaded.factor}. "
            f"Give {max(1, round(size / loaded.factor)) * loaded.factor}."
        )
    pixels = to_tensor(center_crop(picture, size, size))
    made = loaded.decode(loaded.encode(pixels.unsqueeze(0)))[0]
    save_picture(side_by_side(to_image(pixels), to_image(made)), out)
    click.echo(f"{psnr(pixels, made):.2f} dB  {out}")


def _folder(tokenizer: Path | None, checkpoint: Path | None) -> Path:
    if tokenizer is not None and checkpoint is not None:
        raise ConfigError("--tokenizer and --checkpoint name two tokenizers. Give one of them.")
    if tokenizer is not None:
        return tokenizer
    if checkpoint is None:
        from liquidmm.generate.load import DEFAULT_MODEL

        checkpoint = DEFAULT_MODEL
    return checkpoint / "image_tokenizer"
