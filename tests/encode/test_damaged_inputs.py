"""Ten thousand inputs, a thousand of them damaged in 28 ways: each becomes a sample or a rejection.

Generated from a seed. The codes are checksums of the resized pixels, so that wrong pixels fail the
test. Valid but unusual: CMYK, 16 bits, palettes, transparency, EXIF rotation, animations, a wrong
suffix, bytes after the end.
"""

import io
import json
import os
import random
import struct
import zlib
from collections import Counter

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from liquidmm.data.readers import SourceConfig
from liquidmm.data.shards import read_shards
from liquidmm.encode import EncoderConfig, encode

SIZE = 16
CONFIG = EncoderConfig(resolution=SIZE, samples_per_shard=512, max_error_rate=0.5)
WEIGHTS = np.random.default_rng(0).integers(1, 2**20, (4, 4, 3))
VARIANTS = 12
ROOT = os.geteuid() == 0
"""Root may read every file, so one kind of damage does not exist."""


def checksums(pixels):
    """Map pixels (B, 16, 16, 3) to a number below 65521 for each 4 x 4 patch, (B, 4, 4)."""
    patches = pixels.reshape(-1, 4, 4, 4, 4, 3).astype(np.int64)
    return np.einsum("byixjc,ijc->byx", patches, WEIGHTS) % 65521


class Checksums:
    """An image tokenizer whose codes identify the pixels; records the memory in use."""

    codebook_size = 65536
    downsample_factor = 4
    fingerprint = "checksums"
    device = torch.device("cpu")

    def __init__(self):
        self.memory = []

    def __call__(self):
        return self

    def encode(self, pixels):
        self.memory.append(psutil.Process().memory_info().rss)
        return torch.from_numpy(checksums(pixels.permute(0, 2, 3, 1).numpy()))


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(rng, width=SIZE, height=SIZE, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def on_white(colors, alpha):
    """Lay colors on white as Pillow does, exactly."""
    rgba = Image.fromarray(np.dstack([colors, alpha]))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba))[..., :3]


def plain(kind, **options):
    def make(rng):
        pixels = noise(rng)
        return saved(Image.fromarray(pixels), kind, **options), pixels

    return make


def jpeg(rng):
    content = saved(Image.fromarray(noise(rng)), "JPEG", quality=90)
    return content, np.asarray(Image.open(io.BytesIO(content)))


def gray(rng):
    pixels = noise(rng)[..., 0]
    return saved(Image.fromarray(pixels), "PNG"), np.dstack([pixels] * 3)


def one_bit(rng):
    pixels = (noise(rng)[..., 0] > 127) * np.uint8(255)
    return saved(Image.fromarray(pixels).convert("1"), "PNG"), np.dstack([pixels] * 3)


def deep(rng):
    values = rng.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
    pixels = np.round(values / 257).astype(np.uint8)
    return saved(Image.fromarray(values), "PNG"), np.dstack([pixels] * 3)


def transparent(rng):
    colors, alpha = noise(rng), noise(rng)[..., 0]
    image = Image.fromarray(np.dstack([colors, alpha]))
    return saved(image, "PNG"), on_white(colors, alpha)


def transparent_gray(rng):
    values, alpha = noise(rng)[..., 0], noise(rng)[..., 0]
    image = Image.merge("LA", (Image.fromarray(values), Image.fromarray(alpha)))
    return saved(image, "PNG"), on_white(np.dstack([values] * 3), alpha)


def palette(rng):
    colors, index = noise(rng, 8, 1)[0], rng.integers(0, 8, (SIZE, SIZE), dtype=np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putdata(index.reshape(-1).tolist())
    image.putpalette(colors.reshape(-1).tolist())
    pixels = colors[index]
    pixels[index == 3] = 255
    return saved(image, "PNG", transparency=3), pixels


def one_clear_color(rng):
    pixels = noise(rng)
    clear = tuple(int(value) for value in pixels[0, 0])
    shown = pixels.copy()
    shown[0, 0] = 255
    return saved(Image.fromarray(pixels), "PNG", transparency=clear), shown


def cmyk(rng):
    image = Image.fromarray(noise(rng, channels=4), "CMYK")
    return saved(image, "TIFF"), np.asarray(image.convert("RGB"))


TURNS = {
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: np.rot90(np.fliplr(p)),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(np.fliplr(p), -1),
    8: np.rot90,
}


def turned(rng):
    orientation = int(rng.integers(2, 9))
    pixels = noise(rng, SIZE, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = TURNS[orientation](pixels)
    middle = upright[4:20] if upright.shape[0] == 24 else upright[:, 4:20]
    return saved(Image.fromarray(pixels), "PNG", exif=exif), middle


def animated(kind, **options):
    def make(rng):
        frames = [Image.fromarray(noise(rng)) for _ in range(3)]
        if kind == "GIF":
            frames = [frame.quantize(16) for frame in frames]
        first = np.asarray(frames[0].convert("RGB"))
        return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options), first

    return make


def wide(rng):
    pixels = noise(rng, 24, SIZE)
    return saved(Image.fromarray(pixels), "PNG"), pixels[:, 4:20]


def large(rng):
    image = Image.fromarray(noise(rng, 40, 40))
    small = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return saved(image, "WEBP", lossless=True), np.asarray(small)


GOOD = {
    "png": plain("PNG"),
    "interlaced or not": plain("PNG", compress_level=0),
    "webp": plain("WEBP", lossless=True),
    "bmp": plain("BMP"),
    "tiff": plain("TIFF", compression="tiff_lzw"),
    "ppm": plain("PPM"),
    "jpeg": jpeg,
    "gray": gray,
    "one bit": one_bit,
    "16 bits": deep,
    "transparent": transparent,
    "transparent gray": transparent_gray,
    "palette with a clear color": palette,
    "one clear color": one_clear_color,
    "cmyk": cmyk,
    "turned by exif": turned,
    "animated gif": animated("GIF"),
    "animated webp": animated("WEBP", lossless=True),
    "animated png": animated("PNG"),
    "wide": wide,
    "large": large,
}
"""Kind -> function that makes a file and its resized pixels."""


def png_of(width, height):
    """A PNG of a few hundred bytes with this size in its header."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(50_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def flipped(rng):
    content = bytearray(saved(Image.fromarray(noise(rng)), "PNG"))
    content[content.index(b"IDAT") + 40] ^= 0xFF
    return bytes(content)


def floats(rng):
    values = rng.random((SIZE, SIZE), dtype=np.float32)
    values[3, 3] = np.nan
    return saved(Image.fromarray(values), "TIFF")


BAD = {
    "truncated png": (lambda rng: plain("PNG")(rng)[0][:500], "is broken"),
    "truncated jpeg": (lambda rng: jpeg(rng)[0][:700], "is broken"),
    "truncated gif": (lambda rng: animated("GIF")(rng)[0][:120], "is broken"),
    "flipped bits": (flipped, "is broken"),
    "bomb": (lambda rng: png_of(12_000, 12_000), "at most 100000000 pixels"),
    "large bomb": (lambda rng: png_of(60_000, 60_000), "at most 100000000 pixels"),
    "text": (lambda rng: b"hello\n" * 9, "not an image in a known format"),
    "page": (lambda rng: b"<html>404</html>", "not an image in a known format"),
    "program": (lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image in a known format"),
    "drawing": (lambda rng: b"<svg xmlns='a'/>", "not an image in a known format"),
    "one row": (lambda rng: saved(Image.fromarray(noise(rng, 300, 1)), "PNG"), "2 to 1 or more"),
    "one column": (lambda rng: saved(Image.fromarray(noise(rng, 1, 90)), "PNG"), "2 to 1 or more"),
    "nan": (floats, "floating-point pixels"),
}
"""Kind -> function that makes a file, and a part of the reason."""


def reasons_of(folder):
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {item["line"] or item["where"]: item["reason"] for item in map(json.loads, lines)}


def check(folder, good, bad):
    """Compare shards and rejected records with the expected ones.

    Args:
        folder: Folder of shards.
        good: Key -> codes.
        bad: Line or place -> part of the reason.
    """
    found = {row.key: row.image_codes[0] for row in read_shards(folder)}
    assert found.keys() == good.keys()
    wrong = [key for key, grid in good.items() if not np.array_equal(found[key], grid)]
    assert wrong == []
    reasons = reasons_of(folder)
    assert reasons.keys() == bad.keys()
    other = {place: reasons[place] for place, words in bad.items() if words not in reasons[place]}
    assert other == {}


@pytest.fixture(scope="module")
def made():
    """Kind -> variants: files with their codes, or files with a part of the reason."""
    rng = np.random.default_rng(1)
    good = {kind: [make(rng) for _ in range(VARIANTS)] for kind, make in GOOD.items()}
    good = {
        kind: [(content, checksums(np.ascontiguousarray(p)[None])[0]) for content, p in variants]
        for kind, variants in good.items()
    }
    bad = {kind: [(make(rng), words)] * VARIANTS for kind, (make, words) in BAD.items()}
    return good, bad


@pytest.mark.slow
def test_images_in_a_table(made, tmp_path):
    """8,000 files inside a Parquet file, 700 of them bad."""
    good, bad = made
    chance = random.Random(2)
    is_bad = [True] * 700 + [False] * 7300
    chance.shuffle(is_bad)
    rows, wanted, rejected = [], {}, {}
    for number, broken in enumerate(is_bad):
        kinds = bad if broken else good
        kind = list(kinds)[number % len(kinds)]
        content, expected = chance.choice(kinds[kind])
        # bytes after the end make all files different, so that none are shared
        rows.append({"key": f"{number}", "image": content + b"\0%d" % number, "caption": kind})
        (rejected if broken else wanted)[number if broken else f"{number}"] = expected
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=400)
    tokenizer = Checksums()
    source = SourceConfig(path=str(tmp_path / "rows.parquet"))
    manifest = encode(source, tokenizer, tmp_path / "out", CONFIG)
    assert (manifest.totals.records, manifest.totals.rejected) == (7300, 700)
    check(tmp_path / "out", wanted, rejected)
    # memory stays flat
    assert max(tokenizer.memory) - tokenizer.memory[len(tokenizer.memory) // 8] < 48 * 2**20


LINES = {
    "cut": ('{"image": "0.png", "capt', "not valid JSON"),
    "no object": ("[1, 2]", "not a JSON object"),
    "bytes": ('{"image": "0.png", "caption": "\udce9"}', "not UTF-8"),
    "no caption": ('{"image": "0.png"}', "'image' without a caption"),
    "empty caption": ('{"image": "0.png", "caption": "  "}', "is empty"),
    "number for a caption": ('{"image": "0.png", "caption": 5}', "must be"),
    "number for a path": ('{"image": 7, "caption": "a"}', "must be"),
    "half a character": ('{"image": "0.png", "caption": "\\ud83d"}', "ud83d"),
    "nothing known": ('{"picture": "0.png"}', "matches no known layout"),
    "folder": ('{"image": "folder.png", "caption": "a"}', "is a folder"),
    "link to nothing": ('{"image": "link.png", "caption": "a"}', "is a broken link"),
    "missing": ('{"image": "none.png", "caption": "a"}', "no such file"),
    "empty": ('{"image": "empty.png", "caption": "a"}', "is empty (0 bytes)"),
    "pipe": ('{"image": "pipe.png", "caption": "a"}', "is a device or a pipe"),
    "nul": ('{"image": "a\\u0000b.png", "caption": "a"}', "cannot be read"),
}
"""Kind -> a line, and a part of the reason."""
if not ROOT:
    LINES["no permission"] = ('{"image": "shut.png", "caption": "a"}', "Permission denied")


def test_image_paths_in_lines(made, tmp_path):
    """1,900 lines that name files, 250 of them bad, the last one cut off."""
    good, _ = made
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "shut.png").touch(mode=0)
    codes = {}
    for kind, variants in good.items():
        for variant, (content, grid) in enumerate(variants[:3]):
            name = f"{kind} ü {variant}.{'png' if variant else 'jpg'}"  # mostly another kind
            codes[name] = grid
            (tmp_path / name).write_bytes(content)
    (tmp_path / "0.png").symlink_to(tmp_path / next(iter(codes)))
    codes["0.png"] = next(iter(codes.values()))
    chance = random.Random(3)
    is_bad = [True] * 249 + [False] * 1650
    chance.shuffle(is_bad)
    lines, wanted, rejected = [], {}, {}
    for number, broken in enumerate(is_bad, start=1):
        if broken:
            line, rejected[number] = list(LINES.values())[number % len(LINES)]
        else:
            name = chance.choice(list(codes))
            wanted[f"{number}"] = codes[name]
            line = json.dumps({"key": f"{number}", "image": name, "caption": name})
        lines.append(line.encode(errors="surrogateescape"))
    lines.append(b'{"image": "0.png", "caption": "the last line is cu')
    rejected[1900] = "not valid JSON"
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines))
    source = SourceConfig(path=str(tmp_path / "records.jsonl"))
    manifest = encode(source, Checksums(), tmp_path / "out", CONFIG)
    assert (manifest.totals.records, manifest.totals.rejected) == (1650, 250)
    check(tmp_path / "out", wanted, rejected)


def test_images_in_a_folder(made, tmp_path):
    """100 files with captions, 50 of them bad."""
    good, _ = made
    folder = tmp_path / "images"
    folder.mkdir()
    wanted, rejected = {}, {}
    grids = [variant for variants in good.values() for variant in variants]
    for number in range(50):
        content, wanted[f"{number:02d}"] = grids[5 * number]
        (folder / f"{number:02d}.png").write_bytes(content)
        (folder / f"{number:02d}.txt").write_text("a caption\n")
    for number in range(50, 100):
        name = f"{number:02d}.png"
        path, kind = folder / name, number % 5
        (folder / f"{number:02d}.txt").write_text("a caption\n")
        place = str(path)
        if kind == 0:
            name = os.fsdecode(b"\xe9%d.png" % number)
            (folder / name).write_bytes(grids[0][0])
            (folder / f"{number:02d}.txt").rename((folder / name).with_suffix(".txt"))
            place, words = str(folder / f"\\udce9{number}.png"), "is not UTF-8"
        elif kind == 1:
            path.mkdir()
            words = "is a folder"
        elif kind == 2:
            path.symlink_to(folder / "nowhere.png")
            words = "is a broken link"
        elif kind == 3:
            path.write_bytes(grids[0][0])
            (folder / f"{number:02d}.txt").unlink()
            words = f"cannot read {number}.txt"
        else:
            path.write_bytes(b"")
            words = "is empty (0 bytes)"
        rejected[place] = words
    source = SourceConfig(path=str(folder))
    manifest = encode(source, Checksums(), tmp_path / "out", CONFIG)
    assert (manifest.totals.records, manifest.totals.rejected) == (50, 50)
    check(tmp_path / "out", wanted, rejected)


def test_inputs_have_all_kinds_of_damage():
    assert len(BAD) + len(LINES) >= 28 - ROOT
    assert Counter(words for _, words in LINES.values())["must be"] == 2
