"""Resizing of images for encoding: choose a size, scale, crop or pad.

The result depends only on the image and the configuration. An image that fits no size raises
`DataError`; images are never stretched.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from liquidmm.data.records import ImageSource
from liquidmm.encode.config import BucketConfig, EncoderConfig
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.images import center_crop, open_image, pad_square

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


class ImageTransform:
    """Resizes images to the configured sizes; safe to use from many threads."""

    def __init__(self, config: EncoderConfig, downsample_factor: int) -> None:
        """Check the sizes against the image tokenizer's pixels per code along each side.

        Raises:
            ConfigError: A size is not a multiple of the downsampling factor, or is smaller.
        """
        self._config = config
        self._sizes: dict[float, list[Size]]  # by aspect ratio
        if config.buckets is not None:
            self._sizes = _bucket_sizes(config.buckets, downsample_factor)
        else:
            if config.resolution % downsample_factor:
                near = max(1, round(config.resolution / downsample_factor)) * downsample_factor
                raise ConfigError(
                    "resolution: expected a multiple of the image tokenizer's downsampling factor "
                    f"{downsample_factor}, got {config.resolution}. Use {near}."
                )
            self._sizes = {1.0: [(config.resolution, config.resolution)]}

    @property
    def sizes(self) -> list[Size]:
        """All output sizes, without duplicates."""
        return list(dict.fromkeys(size for sizes in self._sizes.values() for size in sizes))

    def open(self, source: ImageSource, where: str) -> Pixels:
        """Open and resize an image, (H, W, 3), uint8, RGB; errors start with ``where``.

        Raises:
            DataError: The image cannot be opened, or fits no size.
            LiquidError: A URL cannot be read right now.
        """
        return np.asarray(self(open_image(source), where))

    def __call__(self, image: Image.Image, where: str = "image") -> Image.Image:
        """Resize an upright RGB image, or raise a `DataError` if it fits no size."""
        if self._config.resize == "pad":
            return pad_square(image, self._config.resolution)
        return center_crop(image, *self.choose_size(image.size, where))

    def choose_size(self, size: Size, where: str = "image") -> Size:
        """Choose the size to crop to; an image too long or too small for all is a `DataError`."""
        width, height = size
        aspect = width / height
        nearest = min(self._sizes, key=lambda ratio: abs(math.log(aspect / ratio)))
        self._check_aspect(size, nearest, where)
        sizes = self._sizes[nearest]
        if self._config.buckets is None:
            return sizes[0]
        limit = self._config.buckets.max_upscale or math.inf
        fitting = [to for to in sizes if max(to[0] / width, to[1] / height) <= limit]
        if not fitting:
            smallest = min(sizes, key=lambda to: to[0] * to[1])
            scale = max(smallest[0] / width, smallest[1] / height)
            raise DataError(
                f"{where}: {width} x {height} would be enlarged {scale:.2g} times to "
                f"{smallest[0]} x {smallest[1]}. Use a larger image, raise max_upscale or add a "
                "smaller area."
            )
        area = width * height
        return min(fitting, key=lambda to: abs(math.log(area / (to[0] * to[1]))))

    def _check_aspect(self, size: Size, nearest: float, where: str) -> None:
        limit = self._config.max_aspect
        aspect = size[0] / size[1]
        if not limit or max(aspect / nearest, nearest / aspect) < limit:
            return
        if self._config.buckets is None:
            raise DataError(
                f"{where}: {size[0]} x {size[1]} has an aspect ratio of {limit:g} to 1 or more. "
                "Crop it, raise max_aspect, or set resize = 'pad'."
            )
        raise DataError(
            f"{where}: {size[0]} x {size[1]} is at least {limit:g} times longer than the nearest "
            "bucket. Crop it, raise max_aspect, or add an aspect ratio."
        )


def _bucket_sizes(config: BucketConfig, downsample_factor: int) -> dict[float, list[Size]]:
    found: dict[float, list[Size]] = {}
    for name, aspect in config.aspects().items():
        for area in config.areas:
            width = round(math.sqrt(area * aspect) / downsample_factor) * downsample_factor
            height = round(math.sqrt(area / aspect) / downsample_factor) * downsample_factor
            if not (width and height):
                raise ConfigError(
                    f"buckets: {area} pixels at {name} are narrower than the image tokenizer's "
                    f"downsampling factor {downsample_factor}. Use a larger area."
                )
            if (width, height) not in found.setdefault(aspect, []):
                found[aspect].append((width, height))
    return found
