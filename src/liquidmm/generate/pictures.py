"""Pictures to codes and back, in the sizes a checkpoint was trained on.

Contract: a picture that goes in is fitted to the trained size of the nearest shape, the way
training fitted it; a size to draw must be a trained one. Codes on the outside are (h, w), int64, on
the CPU.
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
"""A picture: a PIL image, the path of a file, or its codes, (h, w), from `Liquid.encode`."""

_GREY = (128, 128, 128)


class Pictures:
    """The image side of one checkpoint, which may have none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Keep what is needed of the checkpoint."""
        self._checkpoint = checkpoint
        self.sizes: tuple[tuple[int, int], ...] = tuple(checkpoint.processor.sizes)
        """Trained sizes, (width, height) in pixels; the first is the default."""

    @property
    def possible(self) -> bool:
        """Whether the checkpoint has what pictures need."""
        return bool(self.sizes) and self._checkpoint.image_tokenizer is not None

    def size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """Check a size to draw; None takes the first.

        Raises:
            ConfigError: The size was not trained; the message lists those that were.
            CheckpointError: The checkpoint was not trained on pictures.
        """
        self._insist()
        if wanted is not None and tuple(wanted) not in self.sizes:
            known = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            raise ConfigError(
                f"size: this checkpoint was not trained on {wanted[0]}x{wanted[1]}. "
                f"Choose one of: {known}."
            )
        return wanted or self.sizes[0]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of codes of a size in pixels."""
        factor = self._checkpoint.require_image_tokenizer().downsample_factor
        return size[1] // factor, size[0] // factor

    def encode(self, image: ImageLike) -> Tensor:
        """Turn a picture into codes; codes are returned as they are.

        Raises:
            DataError: The picture can't be read.
            CheckpointError: The checkpoint was not trained on pictures.
        """
        self._insist()
        if isinstance(image, Tensor):
            return image
        picture = to_rgb(image) if isinstance(image, Image.Image) else open_image(image)
        aspect = picture.width / picture.height
        width, height = min(self.sizes, key=lambda size: abs(size[0] / size[1] - aspect))
        if self._checkpoint.processor.resize == "pad" and width == height:
            picture = pad_square(picture, width)
        else:
            picture = center_crop(picture, width, height)
        return self._checkpoint.require_image_tokenizer().encode(to_tensor(picture)[None])[0].cpu()

    def decode(self, codes: Tensor) -> Image.Image:
        """Turn codes into a picture, RGB."""
        return to_image(self._checkpoint.require_image_tokenizer().decode(codes[None])[0])

    def preview(self, codes: Tensor, grid: tuple[int, int]) -> Image.Image:
        """Turn the first rows of a picture's codes, (r, w), into it; what is missing is grey.

        Args:
            codes: At least one row.
            grid: Rows and columns of all of its codes.

        Returns:
            The picture, RGB. Its last rows may still change a little with those that follow.
        """
        factor = self._checkpoint.require_image_tokenizer().downsample_factor
        canvas = Image.new("RGB", (grid[1] * factor, grid[0] * factor), _GREY)
        canvas.paste(self.decode(codes), (0, 0))
        return canvas

    def _insist(self) -> None:
        if not self.sizes:
            raise CheckpointError(
                "checkpoint: was not trained on pictures (no sizes in processor_config.json). "
                "Use one that was, or train this one."
            )
