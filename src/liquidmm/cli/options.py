"""Options and checks that several commands share.

Importing this module is cheap. Commands call `load_model` after all checks that do not need the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from liquidmm.errors import ConfigError

if TYPE_CHECKING:
    from liquidmm.generate.liquid import Liquid

Command = TypeVar("Command", bound=Callable[..., Any])

WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Formats that can store any RGB image."""


class Size(click.ParamType[Any]):
    """WIDTHxHEIGHT in pixels."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse "512x512"."""
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            self.fail(f"expected width x height such as 512x512, got '{value}'.", param, ctx)
        return int(width), int(height)


def model_options(command: Command) -> Command:
    """Add the options that `load_model` takes as keywords."""
    command = click.option(
        "--quantize",
        metavar="TYPE",
        help="Quantize the weights: int8 (CPU only). Faster, slightly less accurate.",
    )(command)
    command = click.option(
        "--dtype",
        metavar="TYPE",
        default="auto",
        show_default=True,
        help="dtype of the weights: float32, bfloat16 or float16.",
    )(command)
    command = click.option(
        "--device", metavar="NAME", help="cpu, cuda or mps.  [default: the fastest available]"
    )(command)
    command = click.option(
        "--image-tokenizer",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Image tokenizer folder or vqgan.ckpt, for a checkpoint without one.",
    )(command)
    return click.option(
        "--checkpoint",
        metavar="FOLDER",
        help="Checkpoint folder, or owner/name on the Hub.  [default: the built-in model]",
    )(command)


def load_model(
    checkpoint: str | None,
    image_tokenizer: Path | None,
    device: str | None,
    dtype: str,
    quantize: Any,
) -> Liquid:
    """Load the model that the shared options name."""
    from liquidmm.generate.engine import EngineConfig
    from liquidmm.generate.liquid import load

    engine = EngineConfig(quantize=quantize)
    return load(checkpoint, device, dtype, image_tokenizer, engine)


def check_image_path(path: Path) -> None:
    """Check that an image can be written to a path.

    Raises:
        ConfigError: The path is a folder, or its suffix is not that of an image format.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder. Name a file, such as {path / 'out.png'}.")
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ConfigError(
            f"{path}: '{path.suffix}' is not an image format. Use .png, .jpg or .webp."
        )


def save_image(image: Any, path: Path) -> None:
    """Write a PIL image atomically, replacing an existing file."""
    from liquidmm.files import atomic_file

    with atomic_file(path) as temporary:
        image.save(temporary)
