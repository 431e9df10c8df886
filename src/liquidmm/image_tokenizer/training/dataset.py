"""Training pictures for the image tokenizer, all in memory.

Contract: pictures are opened and prepared once and kept as one uint8 tensor (N, 3, S, S). Which
pictures a step sees, and how they are shifted or mirrored, depends only on the seed and the step,
so that a resumed training goes on exactly.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES
from liquidmm.image_tokenizer.images import center_crop, open_image, pad_square
from liquidmm.image_tokenizer.training.config import ImageDataConfig
from liquidmm.runtime import generator

_WHITE = 255


class Pictures(NamedTuple):
    """The two parts of the data."""

    train: Tensor
    """(N, 3, S, S), uint8."""
    validation: Tensor
    """(M, 3, S, S), uint8; M may be 0."""


def load_pictures(config: ImageDataConfig, seed: int) -> Pictures:
    """Open all pictures of a run.

    Args:
        config: The data part of the run file.
        seed: Chooses what is held out when no split says so.

    Raises:
        DataError: A picture or a line is broken, or the path does not exist.
        ConfigError: No pictures are left to train on.
    """
    listed = [found for source in config.images for found in _listed(source)]
    train = [
        path
        for path, split in listed
        if (split in config.splits if config.splits else split not in config.validation_splits)
    ]
    if config.validation_splits:
        held_out = _shuffled([p for p, s in listed if s in config.validation_splits], seed)
    else:
        held_out = _shuffled(train, seed)[: int(len(train) * config.validation_fraction)]
        taken = set(held_out)
        train = [path for path in train if path not in taken]
    if not train:
        known = sorted({split for _, split in listed})
        raise ConfigError(
            f"data.images: {', '.join(map(str, config.images))} leave no picture to train on. "
            f"Splits found: {', '.join(known) or 'none'}."
        )
    return Pictures(_opened(train, config), _opened(held_out[: config.validation_images], config))


def _shuffled(paths: list[Path], seed: int) -> list[Path]:
    order = torch.randperm(len(paths), generator=generator(seed, "cpu")).tolist()
    return [paths[index] for index in order]


def _listed(source: Path) -> list[tuple[Path, str]]:
    """List the pictures of a folder or of a .jsonl file, each with its split ("" if none)."""
    if source.is_dir():
        return [(p, "") for p in sorted(source.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
    try:
        # Not splitlines: a JSON string may hold U+2028 and the like.
        lines = source.read_text("utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}. Give a folder or a .jsonl file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{source}: no text. Give a folder or a .jsonl file.") from None
    listed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}:{number}: no JSON ({error}). Correct the line.") from None
        name = found.get("image") if isinstance(found, dict) else None
        if not isinstance(name, str):
            raise DataError(f'{source}:{number}: no "image" with a path. Add it.')
        listed.append((source.parent / name, str(found.get("split", ""))))
    return listed


def _opened(paths: list[Path], config: ImageDataConfig) -> Tensor:
    pixels = np.empty((len(paths), config.size, config.size, 3), dtype=np.uint8)
    for index, path in enumerate(tqdm(paths, desc="pictures", unit="img", disable=len(paths) < 64)):
        pixels[index] = np.asarray(_prepared(open_image(path), config))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _prepared(image: Image.Image, config: ImageDataConfig) -> Image.Image:
    if config.prepare == "pad":
        return pad_square(image, config.size, (_WHITE,) * 3)
    return center_crop(image, config.size, config.size)


def batch(pictures: Tensor, step: int, size: int, seed: int, config: ImageDataConfig) -> Tensor:
    """Take the pictures of one step.

    Args:
        pictures: (N, 3, S, S), uint8.
        step: Counted from 0; each epoch has its own order, and the last one wraps around.
        size: Pictures in a step.
        seed: The run's seed.
        config: Says how pictures are shifted and mirrored.

    Returns:
        (size, 3, S, S), float32 in [-1, 1].
    """
    first = step * size
    indices: list[int] = []
    while len(indices) < size:
        epoch, offset = divmod(first + len(indices), len(pictures))
        order = torch.randperm(
            len(pictures), generator=generator((seed * 1_000_003 + epoch) % 2**63, "cpu")
        )
        indices += order[offset : offset + size - len(indices)].tolist()
    chosen = pictures[indices]
    if config.shift or config.flip:
        chosen = _augmented(chosen, generator((seed * 7_368_787 + step) % 2**63, "cpu"), config)
    return to_float(chosen)


def _augmented(pictures: Tensor, random: torch.Generator, config: ImageDataConfig) -> Tensor:
    side, shift = pictures.shape[-1], config.shift
    moves = torch.randint(0, 2 * shift + 1, (len(pictures), 2), generator=random).tolist()
    mirrored = (torch.rand(len(pictures), generator=random) < 0.5).tolist()
    padded = torch.nn.functional.pad(pictures, (shift,) * 4, value=_WHITE)
    out = torch.empty_like(pictures)
    for index, (top, left) in enumerate(moves):
        part = padded[index, :, top : top + side, left : left + side]
        out[index] = part.flip(-1) if config.flip and mirrored[index] else part
    return out


def to_float(pictures: Tensor) -> Tensor:
    """Scale uint8 pictures to float32 in [-1, 1]."""
    return pictures.float().div_(127.5).sub_(1.0)
