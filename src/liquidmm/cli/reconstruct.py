"""The command `liquid reconstruct`."""

from __future__ import annotations

from pathlib import Path

import click

from liquidmm.errors import ConfigError

_PATH = click.Path(path_type=Path)


@click.command("reconstruct")
@click.argument("image", type=_PATH)
@click.option("-o", "--out", type=_PATH, required=True, help="Image file to write.")
@click.option("--tokenizer", type=_PATH, help="Folder or file of an image tokenizer.")
@click.option("--checkpoint", type=_PATH, help="Liquid model with the image tokenizer.")
@click.option(
    "--resolution",
    type=click.IntRange(1),
    help="Width and height in pixels.  [default: the tokenizer's resolution]",
)
def command(
    image: Path, out: Path, tokenizer: Path | None, checkpoint: Path | None, resolution: int | None
) -> None:
    """Compare an image with its reconstruction.

    Crops the image to a square, writes it next to its reconstruction, and prints the PSNR and the
    path. The default tokenizer is that of the built-in model.
    """
    from liquidmm.cli.options import check_image_path, save_image
    from liquidmm.image_tokenizer.images import (
        center_crop,
        contact_sheet,
        open_image,
        psnr,
        to_image,
        to_tensor,
    )
    from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer

    check_image_path(out)
    original = open_image(image)
    loaded = load_image_tokenizer(_folder(tokenizer, checkpoint))
    resolution = resolution or loaded.resolution
    factor = loaded.downsample_factor
    if resolution % factor:
        raise ConfigError(
            f"--resolution: expected a multiple of the downsampling factor {factor}, got "
            f"{resolution}. Use {max(1, round(resolution / factor)) * factor}."
        )
    pixels = to_tensor(center_crop(original, resolution, resolution))
    made = loaded.decode(loaded.encode(pixels.unsqueeze(0)))[0]
    save_image(contact_sheet([to_image(pixels), to_image(made)], columns=2), out)
    click.echo(f"{psnr(pixels, made):.2f} dB  {out}")


def _folder(tokenizer: Path | None, checkpoint: Path | None) -> Path:
    if tokenizer is not None and checkpoint is not None:
        raise ConfigError("--tokenizer cannot be combined with --checkpoint. Pass one of them.")
    if tokenizer is not None:
        return tokenizer
    if checkpoint is None:
        from liquidmm.generate.liquid import DEFAULT_MODEL

        checkpoint = DEFAULT_MODEL
    return checkpoint / "image_tokenizer"
