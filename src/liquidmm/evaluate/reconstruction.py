"""Reconstruction: what the image tokenizer keeps of real icons, in figures and on one sheet."""

import statistics

import torch
from PIL import Image
from torch import Tensor

from liquidmm import files, runtime
from liquidmm.errors import ConfigError
from liquidmm.evaluate.gallery import Icon, read_icons, sample
from liquidmm.evaluate.metrics import codebook_use
from liquidmm.evaluate.report import Context
from liquidmm.image_tokenizer import images as pixels
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer, load_image_tokenizer
from liquidmm.model.checkpoint import IMAGE_TOKENIZER_FOLDER

HELD_OUT = ("held_out_pairs", "held_out_concepts")
"""Splits that no training has seen."""

SHEET_COLUMNS = 12
"""Icons in a row of the contact sheet."""


def reconstruction(context: Context) -> None:
    """PSNR and codebook use on trained and on held-out icons.

    Raises:
        DataError: The icons are missing or a split is empty.
        CheckpointError: There is no image tokenizer in the checkpoint.
    """
    icons = read_icons(context.data)
    tokenizer = _tokenizer(context)
    present = [split for split in HELD_OUT if any(icon.split == split for icon in icons)]
    for part, split in (("trained", "train"), *((split, split) for split in present)):
        chosen = sample(icons, split, context.n, context.seed)
        ratios, codes = [], []
        for _, chunk in context.chunks(part, chosen):
            originals = torch.stack([_pixels(icon, tokenizer.downsample_factor) for icon in chunk])
            found, rebuilt = round_trip(tokenizer, originals)
            ratios += [pixels.psnr(a, b) for a, b in zip(originals, rebuilt, strict=True)]
            codes.append(found.flatten())
        share, spread = codebook_use(torch.cat(codes), tokenizer.codebook_size)
        report = context.report
        report.number(f"{part}_psnr_mean", statistics.fmean(ratios), "dB")
        report.number(f"{part}_psnr_median", statistics.median(ratios), "dB")
        report.number(f"{part}_codebook_use", share, "%")
        report.number(f"{part}_codebook_perplexity", spread, "codes")
        report.number(f"{part}_n", len(chosen), "pictures")


def contact_sheet(context: Context) -> None:
    """Write ``contact-sheet.png``: real icons, reconstructions, drawings from their captions.

    One block of three rows for trained icons and one for held-out concept-style pairs.

    Raises:
        ConfigError: No --out folder is given.
        DataError: The icons are missing or a split is empty.
    """
    if context.out is None:
        raise ConfigError("contact-sheet: no folder to write to. Give one with --out FOLDER.")
    icons = read_icons(context.data)
    tokenizer = _tokenizer(context)
    sampling = context.chosen_sampling()
    cells: list[Image.Image] = []
    captions: list[str] = []
    for split in ("train", "held_out_pairs"):
        chosen = sample(icons, split, min(context.n, SHEET_COLUMNS), context.seed)
        context.progress(split, 0, len(chosen))
        originals = torch.stack([_pixels(icon, tokenizer.downsample_factor) for icon in chosen])
        _, rebuilt = round_trip(tokenizer, originals)
        drawn = context.model().generate_images(
            [icon.captions[0] for icon in chosen],
            seeds=[context.seed + i for i in range(len(chosen))],
            sampling=sampling,
        )
        side = max(96, originals.shape[-1])
        for row in (
            [pixels.to_image(x) for x in originals],
            [pixels.to_image(x) for x in rebuilt],
            drawn,
        ):
            cells += [image.resize((side, side), Image.Resampling.NEAREST) for image in row]
            # A short last block still fills its row, so that rows stay aligned.
            cells += [Image.new("RGB", (side, side), "white")] * (SHEET_COLUMNS - len(row))
        blank = [""] * (SHEET_COLUMNS - len(chosen))
        captions += [icon.name for icon in chosen] + blank
        captions += ["reconstructed"] * len(chosen) + blank
        captions += [icon.style for icon in chosen] + blank
        context.progress(split, len(chosen), len(chosen))
    path = context.out / "contact-sheet.png"
    with files.atomic_file(path) as temporary:
        pixels.contact_sheet(cells, SHEET_COLUMNS, captions).save(
            temporary, format="PNG", optimize=True
        )
    context.report.number("pictures", len(cells), "pictures")
    context.report.settings["file"] = str(path)


@torch.no_grad()
def round_trip(tokenizer: ImageTokenizer, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode.

    Args:
        tokenizer: The image tokenizer.
        originals: (B, 3, H, W) float32 in [-1, 1]; H and W divisible by its factor.

    Returns:
        Codes (B, h, w) int64 and pictures (B, 3, H, W) float32 in [-1, 1], both on the CPU; the
        pictures are rounded to the 256 levels that a file can hold.
    """
    codes = tokenizer.encode(originals)
    rebuilt = tokenizer.decode(codes).clamp(-1, 1)
    levels = ((rebuilt + 1) * 127.5).round() / 127.5 - 1
    return codes.cpu(), levels.float().cpu()


def _tokenizer(context: Context) -> ImageTokenizer:
    """The image tokenizer of a checkpoint, or the folder as an image tokenizer itself."""
    inside = context.checkpoint / IMAGE_TOKENIZER_FOLDER
    folder = inside if inside.is_dir() else context.checkpoint
    return load_image_tokenizer(folder).to(runtime.resolve_device(context.device))


def _pixels(icon: Icon, factor: int) -> Tensor:
    """A real icon at its own size, cut so that the tokenizer's factor divides it."""
    image = pixels.open_image(icon.image)
    width, height = (max(factor, side - side % factor) for side in image.size)
    return pixels.to_tensor(pixels.center_crop(image, width, height))
