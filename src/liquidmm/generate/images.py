"""Conversion of images to codes and back, in the sizes a checkpoint was trained on.

An input image is fitted to the trained size with the nearest aspect ratio, as in training; a size
to generate must be a trained one. Codes are (h, w), int64, on the CPU.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.image_tokenizer.images import (
    center_crop,
    open_image,
    pad_square,
    to_image,
    to_rgb,
    to_tensor,
)
from liquidmm.model.checkpoint import Checkpoint

ImageLike = Image.Image | str | Path | Tensor
"""A PIL image, the path of an image file, or codes, (h, w), as `Liquid.encode` returns them."""

_GRAY = (128, 128, 128)


class ImageCodec:
    """Image sizes and image tokenizer of a checkpoint, which may have neither."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.sizes: tuple[tuple[int, int], ...] = tuple(checkpoint.processor.sizes)
        """Trained sizes, (width, height) in pixels; the first is the default."""

    @property
    def available(self) -> bool:
        """Whether the checkpoint can generate images."""
        return bool(self.sizes) and self._checkpoint.image_tokenizer is not None

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size to generate; None is the default size.

        Raises:
            ConfigError: The size is not a trained one; the message lists those.
            CheckpointError: The checkpoint was not trained on images.
        """
        self._require_sizes()
        if size is not None and tuple(size) not in self.sizes:
            known = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            raise ConfigError(
                f"size: this checkpoint was not trained on {size[0]}x{size[1]}. "
                f"Choose one of: {known}."
            )
        return size or self.sizes[0]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of codes for a size in pixels."""
        factor = self._checkpoint.require_image_tokenizer().downsample_factor
        return size[1] // factor, size[0] // factor

    def encode(self, image: ImageLike) -> Tensor:
        """Return the codes of an image; codes are returned unchanged.

        Raises:
            DataError: The image cannot be read.
            CheckpointError: The checkpoint was not trained on images.
        """
        self._require_sizes()
        if isinstance(image, Tensor):
            return image
        rgb = to_rgb(image) if isinstance(image, Image.Image) else open_image(image)
        aspect = rgb.width / rgb.height
        width, height = min(self.sizes, key=lambda size: abs(size[0] / size[1] - aspect))
        if self._checkpoint.processor.resize == "pad" and width == height:
            fitted = pad_square(rgb, width)
        else:
            fitted = center_crop(rgb, width, height)
        return self._checkpoint.require_image_tokenizer().encode(to_tensor(fitted)[None])[0].cpu()

    def decode(self, codes: Tensor) -> Image.Image:
        """Return the image of codes, (h, w), RGB."""
        return to_image(self._checkpoint.require_image_tokenizer().decode(codes[None])[0])

    def preview(self, codes: Tensor, grid: tuple[int, int]) -> Image.Image:
        """Return the image of the first rows of codes; the rest is gray.

        Args:
            codes: At least one row, (r, w).
            grid: Rows and columns of the complete image.

        Returns:
            The image, RGB. The last known rows may still change slightly.
        """
        factor = self._checkpoint.require_image_tokenizer().downsample_factor
        canvas = Image.new("RGB", (grid[1] * factor, grid[0] * factor), _GRAY)
        canvas.paste(self.decode(codes), (0, 0))
        return canvas

    def _require_sizes(self) -> None:
        if not self.sizes:
            raise CheckpointError(
                "checkpoint: was not trained on images (no sizes in processor_config.json). "
                "Use a checkpoint that was, or train this one."
            )
