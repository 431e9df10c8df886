"""Reconstruction: image quality and codebook use of the image tokenizer.

The data is a JSON Lines file, a folder with ``records.jsonl``, or any folder of images. Each split
is measured separately.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import ImageSource, images_of
from liquidmm.errors import DataError
from liquidmm.evaluate.metrics import codebook_use
from liquidmm.evaluate.runner import Context, Task
from liquidmm.image_tokenizer.formats import IMAGE_SUFFIXES
from liquidmm.image_tokenizer.images import center_crop, open_image, psnr, to_tensor
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer, load_image_tokenizer
from liquidmm.model.checkpoint import IMAGE_TOKENIZER_FOLDER
from liquidmm.runtime import resolve_device


def reconstruction(context: Context) -> None:
    """Measure PSNR and codebook use on a seeded sample of each split.

    Raises:
        DataError: The data contains no images.
        CheckpointError: The checkpoint contains no image tokenizer.
    """
    tokenizer = load_tokenizer(context)
    for index, (split, sources) in enumerate(read_images(context.data).items()):
        order = np.random.default_rng([context.config.seed, index]).permutation(len(sources))
        chosen = [sources[place] for place in order[: context.limit]]
        part = "trained" if split == "train" else split
        prefix = part and f"{part}_"
        ratios: list[float] = []
        codes: list[Tensor] = []
        for _, chunk in context.chunks(part or "images", chosen):
            _measure(context, tokenizer, chunk, ratios, codes)
        share, spread = codebook_use(torch.cat(codes), tokenizer.codebook_size)
        report = context.report
        report.add(f"{prefix}psnr_mean", statistics.fmean(ratios), "dB")
        report.add(f"{prefix}psnr_median", statistics.median(ratios), "dB")
        report.add(f"{prefix}codebook_use", share, "%")
        report.add(f"{prefix}codebook_perplexity", spread, "codes")
        report.add(f"{prefix}n", len(chosen), "images")


RECONSTRUCTION = Task(run=reconstruction, data=Path("data/icons"), limit=500)
"""PSNR and codebook use of the image tokenizer."""


def read_images(data: Path) -> dict[str, list[ImageSource]]:
    """List the images of each split, "train" before the held-out ones.

    All images are under "" if there are no splits.

    Raises:
        DataError: There are no images, or a line is damaged.
    """
    splits: dict[str, list[ImageSource]] = {}
    records = data / "records.jsonl" if data.is_dir() else data
    if records.is_file():
        for record in read_jsonl(records):
            splits.setdefault(record.split, []).extend(images_of(record))
    elif data.is_dir():
        splits[""] = sorted(
            path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
    found = {split: splits[split] for split in sorted(splits, reverse=True) if splits[split]}
    if not found:
        raise DataError(
            f"{data}: contains no images. Pass a folder of images or a JSON Lines file with "
            "--data; the built-in images are created by `liquid icons build`."
        )
    return found


@torch.no_grad()
def round_trip(tokenizer: ImageTokenizer, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode.

    Args:
        tokenizer: The image tokenizer.
        originals: (B, 3, H, W) float32 in [-1, 1]; H and W divisible by the downsampling factor.

    Returns:
        Codes (B, h, w) int64 and images (B, 3, H, W) float32 in [-1, 1], both on the CPU; the
        images are rounded to the 256 levels of a file.
    """
    codes = tokenizer.encode(originals)
    rebuilt = tokenizer.decode(codes).clamp(-1, 1)
    levels = ((rebuilt + 1) * 127.5).round() / 127.5 - 1
    return codes.cpu(), levels.float().cpu()


def load_tokenizer(context: Context) -> ImageTokenizer:
    """Load the image tokenizer of the checkpoint, or the checkpoint if it is an image tokenizer."""
    folder = context.config.checkpoint / IMAGE_TOKENIZER_FOLDER
    if not folder.is_dir():
        folder = context.config.checkpoint
    return load_image_tokenizer(folder).to(resolve_device(context.config.device))


def load_pixels(source: ImageSource, factor: int, resolution: int | None = None) -> Tensor:
    """Open an image as (3, H, W) float32 in [-1, 1].

    Args:
        source: The image.
        factor: Downsampling factor of the image tokenizer; the edges are cropped to multiples.
        resolution: Width and height to resize and crop to; None keeps the size.
    """
    image = open_image(source)
    if resolution is not None:
        image = ImageOps.fit(image, (resolution, resolution))
    width, height = (max(factor, side - side % factor) for side in image.size)
    return to_tensor(center_crop(image, width, height))


def _measure(
    context: Context,
    tokenizer: ImageTokenizer,
    sources: Sequence[ImageSource],
    ratios: list[float],
    codes: list[Tensor],
) -> None:
    """Add the PSNR and codes of images; images of the same size are encoded together."""
    sizes: dict[torch.Size, list[Tensor]] = {}
    for source in sources:
        pixels = load_pixels(source, tokenizer.downsample_factor, context.config.resolution)
        sizes.setdefault(pixels.shape, []).append(pixels)
    for group in sizes.values():
        originals = torch.stack(group)
        found, rebuilt = round_trip(tokenizer, originals)
        ratios += [psnr(a, b) for a, b in zip(originals, rebuilt, strict=True)]
        codes.append(found.flatten())
