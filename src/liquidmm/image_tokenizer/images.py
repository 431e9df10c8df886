"""Images as files, PIL images and tensors.

All image files are opened with ``open_image``, and all PIL images pass through ``to_rgb``. Both
return an upright RGB image (EXIF rotation applied, transparency on white) or raise ``DataError``,
and both are thread-safe. Tensors are (3, H, W) float32 in [-1, 1] everywhere else in the package.
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

from liquidmm.errors import DataError, LiquidError, one_line

MAX_PIXELS = 100_000_000
"""Maximum number of pixels in an image, because a file of a few kB can unpack to gigabytes."""
MAX_BYTES = 2**29
"""Maximum file size in bytes."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
"""Accepted formats, by Pillow's names; some other formats would start a program (EPS)."""

_FORMATS = "Use a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file."
_16_BIT_GRAY = ("I", "I;16", "I;16B", "I;16L")
_WHITE = (255, 255, 255)
_PADDING = (122, 116, 104)
# Warning filters are global to the process.
_WARNINGS = threading.Lock()


def open_image(source: Path | str | bytes) -> Image.Image:
    """Read an image as upright RGB, with transparent parts on white.

    Args:
        source: A path, a URL (anything fsspec opens), or the content of a file. For an animation,
            the first frame is used.

    Raises:
        DataError: The file is missing, empty, broken, not an image, or too large.
        LiquidError: A URL cannot be read right now; a later attempt may succeed.
    """
    if isinstance(source, bytes):
        return _decode(source, "image")
    where = str(source)
    content = _read_url(where) if "://" in where else _read_file(Path(source))
    return _decode(content, where)


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a folder, not an image. {_FORMATS}")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is a device or a pipe, not an image. {_FORMATS}")
        _check_bytes(status.st_size, str(path))
        return path.read_bytes()
    except DataError:
        raise
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(f"{path}: is a broken link. Correct the link.") from None
        raise DataError(f"{path}: no such file. Check the path.") from None
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise DataError(f"{path}: cannot be read ({one_line(error)}). Check the file.") from None


def _read_url(url: str) -> bytes:
    try:
        system, path = fsspec.url_to_fs(url)
        _check_bytes(system.info(path).get("size") or 0, url)
        content: bytes = system.cat_file(path)
    except FileNotFoundError:
        raise DataError(f"{url}: no such file. Check the URL.") from None
    except (IsADirectoryError, PermissionError, ValueError, ImportError) as error:
        raise DataError(f"{url}: cannot be read ({one_line(error)}). Check the URL.") from None
    except OSError as error:
        raise LiquidError(
            f"{url}: cannot be read at the moment ({one_line(error)}). Try again."
        ) from error
    return content


def _check_bytes(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: expected at most {MAX_BYTES} bytes, got {size}. Make it smaller."
        )


def _decode(content: bytes, where: str) -> Image.Image:
    if not content:
        raise DataError(f"{where}: the file is empty (0 bytes). {_FORMATS}")
    try:
        with _open(content) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_many_pixels(where, f"{width} x {height}")
            image.load()
            return to_rgb(image, where)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(where, "more") from None
    except UnidentifiedImageError:
        raise DataError(f"{where}: not an image in a known format. {_FORMATS}") from None
    except Exception as error:  # noqa: BLE001 - damaged files make Pillow's readers raise anything
        raise DataError(f"{where}: the image is broken ({one_line(error)}). {_FORMATS}") from None


def _open(content: bytes) -> Image.Image:
    """Read the header; the caller checks the area, so Pillow's warning is not needed."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=_available_formats())


@functools.cache
def _available_formats() -> list[str]:
    Image.init()  # some builds of Pillow lack AVIF
    return [name for name in FORMATS if name in Image.OPEN]


def _too_many_pixels(where: str, found: str) -> DataError:
    return DataError(
        f"{where}: expected at most {MAX_PIXELS} pixels, got {found}. Make it smaller."
    )


def to_rgb(image: Image.Image, where: str = "image") -> Image.Image:
    """Convert a PIL image of any mode to upright RGB, with transparent parts on white.

    Raises:
        DataError: The mode has no fixed range of values.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _16_BIT_GRAY:
        # Pillow's own conversion clips 16-bit gray at 255 instead of scaling it.
        values = np.asarray(image, dtype=np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: gray values outside 0..65535. Convert it to 8 or 16 bits.")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(
            f"{where}: floating-point pixels have no fixed range. Convert it to 8 bits."
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a tensor, (3, H, W), float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))  # (H, W, 3)
    return to_float(pixels.permute(2, 0, 1))


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1.0)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert a tensor, (3, H, W) in [-1, 1], to an RGB image, rounded to 8 bits.

    Raises:
        ValueError: The shape is wrong, or values are outside [-1, 1].
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"pixels: expected one image (3, H, W), got {tuple(pixels.shape)}.")
    values = pixels.detach().float().cpu()
    if not bool((values.abs() <= 1.0 + 1e-4).all()):
        raise ValueError("pixels: values outside [-1, 1] or NaN. Scale the image first.")
    levels = values.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image until it covers ``width`` x ``height``, then crop the center."""
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pad_square(
    image: Image.Image, size: int, color: tuple[int, int, int] = _PADDING
) -> Image.Image:
    """Pad an image to a square, by default with the reference's color, and scale it to ``size``."""
    side = max(image.size)
    if image.width != image.height:
        canvas = Image.new("RGB", (side, side), color)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    gap: int = 4,
) -> Image.Image:
    """Arrange images in a grid on white.

    Args:
        images: At least one image; each cell is as large as the largest.
        columns: Images per row, at least 1.
        captions: One line of text per image, truncated to the width of its cell.
        gap: White pixels around each cell.

    Raises:
        ValueError: There are no images or columns, or the numbers of captions and images differ.
    """
    if not images or columns < 1:
        raise ValueError(
            f"contact sheet: expected at least one image and column, got {len(images)} images in "
            f"{columns} columns."
        )
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions: expected {len(images)}, one per image, got {len(captions)}.")
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


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two images in [-1, 1]; infinite if equal.

    Raises:
        ValueError: The shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr: shapes {tuple(a.shape)} and {tuple(b.shape)} differ.")
    error = torch.mean((a.double() - b.double()) ** 2).item()
    return math.inf if error == 0 else 10 * math.log10(4.0 / error)
