"""Pictures in the sizes that the tokenizer encodes: the nearest size, scaling, cutting, padding.

Contract: what comes out depends on the picture and the configuration alone, has one of `sizes`, and
is a plain array of bytes. A picture that no size fits is a `DataError`; nothing is stretched.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from liquidmm.data.records import ImageSource
from liquidmm.encode.config import BucketConfig, EncodeConfig
from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.images import center_crop, open_image, pad_square

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Size: TypeAlias = tuple[int, int]


class Preparation:
    """Brings pictures to the configured sizes; many threads may use it at once."""

    def __init__(self, config: EncodeConfig, factor: int) -> None:
        """Check the sizes.

        Args:
            config: The sizes and the way.
            factor: Pixels of a side per code.

        Raises:
            ConfigError: A size is no multiple of the factor, or too small for it.
        """
        self._config = config
        self._aspects: dict[float, list[Size]] = {}
        """Aspect ratio -> its sizes."""
        if config.buckets is not None:
            self._aspects = _buckets(config.buckets, factor)
        else:
            if config.size % factor:
                near = max(1, round(config.size / factor)) * factor
                raise ConfigError(
                    f"size: {config.size} is no multiple of the tokenizer's factor {factor}. "
                    f"Take {near}."
                )
            self._aspects = {1.0: [(config.size, config.size)]}

    @property
    def sizes(self) -> list[Size]:
        """Every width and height that comes out, each once."""
        return list(dict.fromkeys(size for sizes in self._aspects.values() for size in sizes))

    def open(self, picture: ImageSource, where: str) -> Pixels:
        """Open and prepare a picture.

        Args:
            picture: A file, the URL of one, or its content.
            where: What it is called in messages.

        Returns:
            (H, W, 3), uint8, RGB.

        Raises:
            DataError: It can't be opened, or no size fits it.
            LiquidError: A URL can't be read now.
        """
        return np.asarray(self(open_image(picture), where))

    def __call__(self, image: Image.Image, where: str = "picture") -> Image.Image:
        """Prepare a picture.

        Args:
            image: An upright RGB image of any size.
            where: Start of the error message, usually a file name.

        Returns:
            The picture in one of the sizes.

        Raises:
            DataError: No size fits it.
        """
        if self._config.prepare == "pad":
            return pad_square(image, self._config.size)
        return center_crop(image, *self.size_for(image.size, where))

    def size_for(self, size: Size, where: str = "picture") -> Size:
        """Choose the size for a picture that is to be cut.

        Args:
            size: Its width and height.
            where: Start of the error message.

        Raises:
            DataError: It is too long for all of them, or too small.
        """
        width, height = size
        aspect = width / height
        nearest = min(self._aspects, key=lambda ratio: abs(math.log(aspect / ratio)))
        self._check_aspect(size, nearest, where)
        sizes = self._aspects[nearest]
        if self._config.buckets is None:
            return sizes[0]
        limit = self._config.buckets.max_upscale or math.inf
        fitting = [to for to in sizes if max(to[0] / width, to[1] / height) <= limit]
        if not fitting:
            least = min(sizes, key=lambda to: to[0] * to[1])
            raise DataError(
                f"{where}: {width} x {height} would be enlarged "
                f"{max(least[0] / width, least[1] / height):.2g} times to {least[0]} x {least[1]}. "
                "Take a larger picture, raise max_upscale or add a smaller area."
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
                f"{where}: {size[0]} x {size[1]} is {limit:g} to 1 or longer. "
                "Crop it, raise max_aspect, or use prepare = 'pad'."
            )
        raise DataError(
            f"{where}: {size[0]} x {size[1]} is {limit:g} times longer than the nearest bucket. "
            "Crop it, raise max_aspect, or add an aspect ratio."
        )


def _buckets(config: BucketConfig, factor: int) -> dict[float, list[Size]]:
    aspects: dict[float, list[Size]] = {}
    for name, aspect in config.aspects().items():
        for area in config.areas:
            width = round(math.sqrt(area * aspect) / factor) * factor
            height = round(math.sqrt(area / aspect) / factor) * factor
            if not (width and height):
                raise ConfigError(
                    f"buckets: {area} pixels at {name} are less than {factor} pixels wide or high, "
                    "the tokenizer's factor. Give a larger area."
                )
            if (width, height) not in aspects.setdefault(aspect, []):
                aspects[aspect].append((width, height))
    return aspects
