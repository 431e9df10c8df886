"""Pictures as files, PIL images and tensors.

Contract: ``open_image`` is the only way a picture file enters the program, and ``to_rgb`` the only
way a PIL image of the caller does. Either gives an RGB image (turned upright by its EXIF tag,
transparency laid on white) or raises ``DataError``, whatever the file holds; many threads may call
them at once. Tensors are (3, H, W) float32 in [-1, 1] everywhere else in the package.
"""

import functools
import io
import math
import stat
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor

from liquidmm.errors import DataError, LiquidError

MAX_PIXELS = 100_000_000
"""Largest picture that is opened, in pixels: a file of a few kB can unpack to gigabytes."""
MAX_BYTES = 2**29
"""Largest file that is read."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
"""Formats that are opened, by Pillow's names; some others would start a program (EPS)."""

_FORMATS = "Give a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file."
_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L")
_WHITE = (255, 255, 255)
# The filters of warnings belong to the whole process.
_WARNINGS = threading.Lock()


def open_image(source: Path | str | bytes) -> Image.Image:
    """Read a picture as an upright RGB image, transparent parts on white.

    Args:
        source: A file, the URL of one (anything fsspec opens), or the content of one. Of an
            animation the first frame is taken.

    Returns:
        The picture, mode RGB.

    Raises:
        DataError: The file is missing, empty, broken, no picture, or too large.
        LiquidError: A URL can't be read now, for a reason that may be gone later.
    """
    if isinstance(source, bytes):
        return _decoded(source, "picture")
    where = str(source)
    content = _fetched(where) if "://" in where else _read(Path(source))
    return _decoded(content, where)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a folder, not a picture. {_FORMATS}")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is a device or a pipe, not a picture. {_FORMATS}")
        _check_bytes(status.st_size, str(path))
        return path.read_bytes()
    except DataError:
        raise
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(f"{path}: is a link to nothing. Correct the link.") from None
        raise DataError(f"{path}: no such file. Check the path.") from None
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}). Check the file.") from None


def _fetched(url: str) -> bytes:
    try:
        system, path = fsspec.url_to_fs(url)
        _check_bytes(system.info(path).get("size") or 0, url)
        content: bytes = system.cat_file(path)
    except FileNotFoundError:
        raise DataError(f"{url}: no such file. Check the URL.") from None
    except (IsADirectoryError, PermissionError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{url}: cannot be read ({reason}). Check the URL.") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise LiquidError(f"{url}: can't be read now ({reason}). Run it again.") from error
    return content


def _check_bytes(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{where}: has {size} bytes, more than {MAX_BYTES}. Make it smaller.")


def _decoded(content: bytes, where: str) -> Image.Image:
    if not content:
        raise DataError(f"{where}: the file is empty (0 bytes). {_FORMATS}")
    try:
        with _opened(content) as image:
            _check_area(image, where)
            image.load()
            return to_rgb(image, where)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{where}: more than {MAX_PIXELS} pixels. Make it smaller.") from None
    except UnidentifiedImageError:
        raise DataError(f"{where}: not a picture in a known format. {_FORMATS}") from None
    except Exception as error:  # noqa: BLE001 - damaged files make Pillow's readers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: the picture is broken ({reason}). {_FORMATS}") from None


def _opened(content: bytes) -> Image.Image:
    """Read the header; the area is checked by the caller, so Pillow need not warn."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=_formats())


@functools.cache
def _formats() -> list[str]:
    Image.init()  # not every Pillow is built with AVIF
    return [name for name in FORMATS if name in Image.OPEN]


def _check_area(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where}: {width} x {height} is more than {MAX_PIXELS} pixels. Make it smaller."
        )


def to_rgb(image: Image.Image, where: str = "picture") -> Image.Image:
    """Turn any PIL image into an upright RGB image, transparent parts on white.

    Args:
        image: The image, of any mode.
        where: Start of the error message, usually a file name.

    Raises:
        DataError: The mode has no fixed range of values.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY:
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        deep = np.asarray(image, dtype=np.float64)
        if deep.min() < 0 or deep.max() > 65535:
            raise DataError(f"{where}: grey values outside 0..65535. Save it as 8 or 16 bit.")
        return Image.fromarray((deep / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{where}: floating-point pixels have no fixed range. Save it as 8 bit.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB image into a tensor, (3, H, W), float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def to_image(pixels: Tensor) -> Image.Image:
    """Turn a tensor into an RGB image.

    Args:
        pixels: (3, H, W), floating point in [-1, 1].

    Returns:
        The image, rounded to 8 bits.

    Raises:
        ValueError: Another shape, or values outside [-1, 1].
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(
            f"pixels: shape {tuple(pixels.shape)}, wanted (3, H, W). Pass one picture."
        )
    values = pixels.detach().float().cpu()
    if not bool((values.abs() <= 1.0 + 1e-4).all()):
        raise ValueError("pixels: values outside [-1, 1] or NaN. Scale the picture first.")
    levels = values.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale until ``width`` x ``height`` is covered, then cut that much out of the middle."""
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pad_square(
    image: Image.Image, size: int, colour: tuple[int, int, int] = (122, 116, 104)
) -> Image.Image:
    """Pad to a square, then scale to ``size``; the default colour is the published release's."""
    side = max(image.size)
    if image.width != image.height:
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    gap: int = 4,
) -> Image.Image:
    """Lay pictures out in rows on white.

    Args:
        images: At least one picture; each cell is as large as the largest.
        columns: Pictures in a row, at least 1.
        captions: One line of text under each picture, cut to the width of its cell.
        gap: White pixels around each cell.

    Raises:
        ValueError: No pictures, no columns, or another number of captions than pictures.
    """
    if not images or columns < 1:
        raise ValueError(f"contact sheet: {len(images)} pictures in {columns} columns. Give some.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"contact sheet: {len(captions)} captions for {len(images)} pictures.")
    line = 12 if captions is not None else 0
    cell_width = max(image.width for image in images)
    cell_height = max(image.height for image in images) + line
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (cell_width + gap) + gap, rows * (cell_height + gap) + gap)
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left = gap + (index % columns) * (cell_width + gap)
        top = gap + (index // columns) * (cell_height + gap)
        sheet.paste(image, (left, top))
        if captions is not None:
            text = captions[index]
            while text and draw.textlength(text) > cell_width:
                text = text[:-1]
            draw.text((left, top + cell_height - line), text, fill=(40, 40, 40))
    return sheet


def side_by_side(*images: Image.Image) -> Image.Image:
    """Lay pictures out in one row."""
    return contact_sheet(images, columns=len(images))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [-1, 1]; infinite when equal.

    Raises:
        ValueError: The shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr: shapes {tuple(a.shape)} and {tuple(b.shape)} differ.")
    error = torch.mean((a.double() - b.double()) ** 2).item()
    return math.inf if error == 0 else 10 * math.log10(4.0 / error)
