"""Options and checks that several commands share.

Contract: importing this module is cheap; the model is loaded by `load_model`, when everything that
can be checked without it has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from liquidmm.errors import ConfigError

if TYPE_CHECKING:
    from liquidmm.generate.decoders.decoder import Weights
    from liquidmm.generate.liquid import Liquid

Command = TypeVar("Command", bound=Callable[..., Any])

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What a picture can be written as: every one of these takes an RGB picture."""


class Size(click.ParamType[Any]):
    """WIDTHxHEIGHT in pixels."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read "512x512"."""
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            self.fail(f"'{value}' is no size. Write width x height, as 512x512.", param, ctx)
        return int(width), int(height)


def model_options(command: Command) -> Command:
    """Add options that `load_model` takes as keywords: the checkpoint, and how it is run."""
    command = click.option(
        "--weights",
        metavar="TYPE",
        help="How weights are held: float32, bfloat16, or int8 on a CPU; as loaded if not given. "
        "Fewer bits are faster and less exact.",
    )(command)
    command = click.option(
        "--device", metavar="NAME", help="cpu, cuda or mps; by default the fastest there is."
    )(command)
    command = click.option(
        "--image-tokenizer",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="For a checkpoint that comes without: a folder of ours, or a vqgan.ckpt.",
    )(command)
    return click.option(
        "--checkpoint",
        metavar="FOLDER",
        help="The model to use instead of the one that comes with this package; or owner/name.",
    )(command)


def load_model(
    checkpoint: str | None,
    image_tokenizer: Path | None,
    device: str | None,
    weights: Weights | None,
    window: int = 0,
) -> Liquid:
    """Load the model that the shared options name."""
    from liquidmm.generate.engine import EngineConfig
    from liquidmm.generate.load import load

    engine = EngineConfig(weights=weights, window=window)
    return load(checkpoint, device, image_tokenizer=image_tokenizer, engine=engine)


def check_picture_path(path: Path) -> None:
    """Refuse a file that couldn't be written as a picture, before anything is computed.

    Raises:
        ConfigError: A folder, or a suffix of no picture format.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder. Name a file, as {path / 'out.png'}.")
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ConfigError(f"{path}: '{path.suffix}' is no picture format. Use .png, .jpg or .webp.")


def save_picture(image: Any, path: Path) -> None:
    """Write a PIL image whole or not at all; an existing file is replaced."""
    from liquidmm.files import atomic_file

    with atomic_file(path) as temporary:
        image.save(temporary)
