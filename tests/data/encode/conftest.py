"""An image tokenizer whose codes can be read, and a source with good and bad records."""

import json

import pytest
import torch
from PIL import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Tokenizer:
    """Codes are the mean of red in each 8 x 8 patch, 0 to 15."""

    codebook_size = 16
    factor = 8
    fingerprint = "patches"
    device = torch.device("cpu")

    def __init__(self):
        self.pictures = 0
        self.batches = []

    def __call__(self):
        """Be what gives a tokenizer, too."""
        return self

    def encode(self, pixels):
        assert pixels.dtype == torch.uint8
        self.pictures += len(pixels)
        self.batches.append(tuple(pixels.shape))
        patches = torch.nn.functional.avg_pool2d(pixels[:, :1].float(), 8)[:, 0]
        return (patches / 17).round().long()


@pytest.fixture
def tokenizer():
    return Tokenizer()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (20, 20), RED).save(tmp_path / "p/red.png")
    Image.new("RGB", (16, 16), BLUE).save(tmp_path / "p/blue.png")
    Image.new("RGB", (40, 10), RED).save(tmp_path / "p/long.png")
    (tmp_path / "p/broken.png").write_bytes(b"\x89PNG nothing")
    turns = [{"role": "user", "content": "<image> ?"}, {"role": "assistant", "content": "red"}]
    lines = [
        {"key": "a", "image": "p/red.png", "caption": "red", "split": "train", "license": "MIT"},
        {"key": "b", "text": "words", "split": "train"},
        {"key": "c", "messages": turns, "images": ["p/red.png"], "split": "train"},
        {"key": "d", "image": "p/blue.png", "captions": ["blue", "azure"], "split": "test"},
        {"key": "e", "image": "p/long.png", "caption": "long", "split": "train"},
        {"key": "f", "image": "p/broken.png", "caption": "broken", "split": "train"},
        {"key": "g", "image": "p/none.png", "caption": "none", "split": "train"},
        {"key": "h", "text": 5, "split": "train"},
        {"key": "i", "image": "p/blue.png", "caption": "blue", "split": "train"},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def gradients(tmp_path):
    """Forty pictures whose codes all differ, in parts of five records."""
    lines = []
    for number in range(40):
        name = f"{number:02d}.png"
        ramp = Image.linear_gradient("L").rotate(9 * number).resize((24, 24))
        Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).save(tmp_path / name)
        lines.append(json.dumps({"key": name, "image": name, "caption": f"ramp {number}"}) + "\n")
    path = tmp_path / "records.jsonl"
    path.write_text("".join(lines))
    return path


def contents(folder):
    """Name and bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
