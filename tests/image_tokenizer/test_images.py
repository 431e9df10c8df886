import io
import math
import os
import struct
import zlib

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from liquidmm.errors import DataError, LiquidError
from liquidmm.image_tokenizer import images
from liquidmm.image_tokenizer.images import (
    center_crop,
    contact_sheet,
    open_image,
    pad_square,
    psnr,
    to_image,
    to_tensor,
)

RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def png(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb() -> bytes:
    """A PNG of 69 bytes that claims 50000 x 50000 pixels."""
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


BAD = {
    "truncated": (png(Image.effect_noise((64, 64), 80))[:700], "is broken"),
    "empty": (b"", "is empty (0 bytes)"),
    "text": (b"hello, not an image\n", "not an image in a known format"),
    "bomb": (bomb(), "pixels"),
    "float": (None, "floating-point pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_line_error(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / f"{name}.png"
    if content is None:
        path = path.with_suffix(".tiff")
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_image(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_missing_file_folder_link_and_pipe(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}: is a folder"):
        open_image(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"link\.png: is a broken link"):
        open_image(tmp_path / "link.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is a device or a pipe"):
        open_image(tmp_path / "pipe.png")


def test_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(DataError, match=r"a\.png.*10 bytes.*11"):
        open_image(tmp_path / "a.png")


def test_open_image_from_url():
    memory = fsspec.filesystem("memory")
    memory.pipe("/images/a.png", png(Image.new("RGB", (3, 2), RED)))
    assert open_image("memory://images/a.png").getpixel((2, 1)) == RED
    with pytest.raises(DataError, match=r"^memory://images/b\.png: no such file"):
        open_image("memory://images/b.png")
    with pytest.raises(DataError, match=r"^odd://b\.png: cannot be read"):
        open_image("odd://b.png")


def test_url_failing_temporarily_is_not_a_data_error(monkeypatch):
    def fails(self, path, **options):
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fails)
    fsspec.filesystem("memory").pipe("/images/c.png", b"content")
    with pytest.raises(
        LiquidError, match=r"c\.png: cannot be read at the moment \(no answer\)"
    ) as error:
        open_image("memory://images/c.png")
    assert not isinstance(error.value, DataError)


def test_eps_is_not_opened():
    assert "EPS" not in images.FORMATS
    with pytest.raises(DataError, match="not an image in a known format"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def test_open_image_from_bytes_equals_path(tmp_path):
    image = Image.new("RGB", (3, 2), RED)
    (tmp_path / "a.png").write_bytes(png(image))
    assert open_image(png(image)).tobytes() == open_image(tmp_path / "a.png").tobytes()
    with pytest.raises(DataError, match=r"^image: "):
        open_image(b"no")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        content = png(image, transparency=0)
    elif mode == "RGB":
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), (0, 0, 0))
        content = png(image, transparency=RED)
    else:
        content = png(image.convert(mode))
    opened = open_image(content)
    assert opened.mode == "RGB"
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 0)]


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2), WHITE)
    image.paste(RED, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show it
    opened = open_image(png(image, exif=exif))
    assert opened.size == (2, 4)
    assert (opened.getpixel((0, 0)), opened.getpixel((0, 3))) == (RED, WHITE)


def test_16_bit_gray_is_scaled():
    deep = np.array([[0, 32896, 65535]], dtype=np.uint16)
    opened = np.asarray(open_image(png(Image.fromarray(deep))))
    assert opened[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "RGB"])
def test_other_modes_become_rgb(mode):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), WHITE).convert(mode).save(out, "TIFF")
    opened = open_image(out.getvalue())
    assert (opened.mode, opened.getpixel((4, 4))) == ("RGB", WHITE)


def test_tensor_round_trip_is_exact():
    image = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert to_image(tensor).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1, 3, 4, 4), r"pixels.*\(1, 3, 4, 4\)"),
        (torch.full((3, 2, 2), 1.5), "outside"),
        (torch.full((3, 2, 2), math.nan), "NaN"),
    ],
)
def test_to_image_rejects_invalid_tensor(tensor, words):
    with pytest.raises(ValueError, match=words):
        to_image(tensor)


def test_center_crop_keeps_center():
    image = Image.new("RGB", (6, 2), RED)
    image.paste(BLUE, (2, 0, 4, 2))
    cropped = center_crop(image, 2, 2)
    assert cropped.getcolors() == [(4, BLUE)]
    assert center_crop(Image.new("RGB", (100, 37)), 64, 32).size == (64, 32)


def test_pad_square_color():
    padded = pad_square(Image.new("RGB", (4, 2), RED), 4)
    assert [padded.getpixel((0, y)) for y in range(4)] == [
        (122, 116, 104),
        RED,
        RED,
        (122, 116, 104),
    ]
    assert pad_square(Image.new("RGB", (5, 9)), 16).size == (16, 16)


def test_contact_sheet():
    cells = [Image.new("RGB", (8, 8), RED)] * 3
    assert contact_sheet(cells, 2, gap=2).size == (22, 22)
    assert contact_sheet(cells, 2, ["a", "b", "a very long caption"], gap=2).size == (22, 46)
    assert contact_sheet(cells, 3).size == (40, 16)
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([], 2)
    with pytest.raises(ValueError, match="captions"):
        contact_sheet(cells, 2, ["a"])


def test_psnr():
    a = torch.zeros(3, 4, 4)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 0.2) == pytest.approx(20.0, abs=1e-5)  # peak to peak is 2
    with pytest.raises(ValueError, match="differ"):
        psnr(a, a[:1])


def test_max_pixels():
    assert images.MAX_PIXELS == 100_000_000
