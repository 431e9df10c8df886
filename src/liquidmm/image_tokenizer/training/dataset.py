"""The training images of an image tokenizer, all in memory.

Images are resized once and kept as one uint8 tensor (N, 3, S, S). The images of a step and their
shifts and flips depend only on the seed and the step, so a resumed run is exact.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES
from liquidmm.image_tokenizer.images import center_crop, open_image, pad_square, to_float
from liquidmm.image_tokenizer.training.config import ImageDataConfig
from liquidmm.runtime import generator

_WHITE = 255


class ImageSplits(NamedTuple):
    """Training and evaluation images."""

    train: Tensor
    """(N, 3, S, S), uint8."""
    eval: Tensor
    """(M, 3, S, S), uint8; M may be 0."""


def load_images(config: ImageDataConfig, seed: int) -> ImageSplits:
    """Load all images of a run; the seed determines which are held out.

    Raises:
        DataError: An image or a line is broken, or a path does not exist.
        ConfigError: No images are left to train on.
    """
    listed = [found for source in config.images for found in _list_images(source)]
    train = [
        path
        for path, split in listed
        if (split in config.splits if config.splits else split not in config.eval_splits)
    ]
    if config.eval_splits:
        held_out = _shuffle([path for path, split in listed if split in config.eval_splits], seed)
    else:
        held_out = _shuffle(train, seed)[: int(len(train) * config.eval_fraction)]
        taken = set(held_out)
        train = [path for path in train if path not in taken]
    if not train:
        known = sorted({split for _, split in listed})
        raise ConfigError(
            f"data.images: no image to train on in {', '.join(map(str, config.images))}. "
            f"Splits found: {', '.join(known) or 'none'}."
        )
    return ImageSplits(_open_all(train, config), _open_all(held_out[: config.eval_samples], config))


def _shuffle(paths: list[Path], seed: int) -> list[Path]:
    order = torch.randperm(len(paths), generator=generator(seed, "cpu")).tolist()
    return [paths[index] for index in order]


def _list_images(source: Path) -> list[tuple[Path, str]]:
    """List the images of a folder or of a .jsonl file, each with its split ("" if none)."""
    if source.is_dir():
        return [(p, "") for p in sorted(source.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
    try:
        # Not splitlines: a JSON string can contain U+2028 and other line separators.
        lines = source.read_text("utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}. Use a folder or a .jsonl file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{source}: not a text file. Use a folder or a .jsonl file.") from None
    listed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}:{number}: invalid JSON ({error}).") from None
        name = found.get("image") if isinstance(found, dict) else None
        if not isinstance(name, str):
            raise DataError(f'{source}:{number}: expected "image" with a path. Add it.')
        listed.append((source.parent / name, str(found.get("split", ""))))
    return listed


def _open_all(paths: list[Path], config: ImageDataConfig) -> Tensor:
    side = config.resolution
    pixels = np.empty((len(paths), side, side, 3), dtype=np.uint8)
    for index, path in enumerate(tqdm(paths, desc="images", unit="img", disable=len(paths) < 64)):
        image = open_image(path)
        if config.resize == "pad":
            image = pad_square(image, side, (_WHITE,) * 3)
        else:
            image = center_crop(image, side, side)
        pixels[index] = np.asarray(image)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def get_batch(images: Tensor, step: int, size: int, seed: int, config: ImageDataConfig) -> Tensor:
    """Return the images of one step, counted from 0, as (size, 3, S, S), float32 in [-1, 1].

    The images, (N, 3, S, S), are reshuffled in each epoch; batches continue across epochs.
    """
    first = step * size
    indices: list[int] = []
    while len(indices) < size:
        epoch, offset = divmod(first + len(indices), len(images))
        order = torch.randperm(
            len(images), generator=generator((seed * 1_000_003 + epoch) % 2**63, "cpu")
        )
        indices += order[offset : offset + size - len(indices)].tolist()
    chosen = images[indices]
    if config.shift or config.flip:
        chosen = _augment(chosen, generator((seed * 7_368_787 + step) % 2**63, "cpu"), config)
    return to_float(chosen)


def _augment(images: Tensor, random: torch.Generator, config: ImageDataConfig) -> Tensor:
    side, shift = images.shape[-1], config.shift
    moves = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=random).tolist()
    mirrored = (torch.rand(len(images), generator=random) < 0.5).tolist()
    padded = torch.nn.functional.pad(images, (shift,) * 4, value=_WHITE)
    out = torch.empty_like(images)
    for index, (top, left) in enumerate(moves):
        part = padded[index, :, top : top + side, left : left + side]
        out[index] = part.flip(-1) if config.flip and mirrored[index] else part
    return out
