"""An image tokenizer with readable codes, and a source with good and bad records."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from liquidmm.data.readers import SourceConfig
from liquidmm.data.shards import read_shards
from liquidmm.encode import EncoderConfig, TokenizerFile, WorkerConfig, encode

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Tokenizer:
    """Codes are the mean of red in each 8 x 8 patch, 0 to 15."""

    codebook_size = 16
    downsample_factor = 8
    fingerprint = "patches"
    device = torch.device("cpu")

    def __init__(self):
        self.images = 0
        self.batches = []

    def __call__(self):
        return self

    def encode(self, pixels):
        assert pixels.dtype == torch.uint8
        self.images += len(pixels)
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


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A source that takes about a second to encode, and the resulting folder."""

    source: SourceConfig
    tokenizer: TokenizerFile
    config: EncoderConfig
    folder: Path

    def arguments(self, out, **workers):
        """Return the arguments of `encode` for another folder."""
        return self.source, self.tokenizer, out, self.config, WorkerConfig(**workers)

    def assert_same(self, out):
        """Compare the names and bytes of all files; nothing else may be left."""
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        wanted = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.fixture(scope="package")
def whole(tmp_path_factory, image_tokenizer_folder):
    folder = tmp_path_factory.mktemp("whole")
    lines = []
    for number in range(60):
        name = f"{number:02d}.png"
        ramp = Image.linear_gradient("L").rotate(6 * number).resize((96, 96))
        Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))).save(folder / name)
        lines.append({"key": name, "image": name, "caption": f"ramp {number}"})
    lines[31]["image"] = "none.png"
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = Whole(
        source=SourceConfig(path=str(path)),
        tokenizer=TokenizerFile(path=image_tokenizer_folder, device="cpu"),
        config=EncoderConfig(resolution=96, samples_per_shard=2, batch_size=4),
        folder=folder / "out",
    )
    encode(*made.arguments(made.folder, num=1))
    codes = [sample.image_codes[0].tobytes() for sample in read_shards(made.folder)]
    assert len(set(codes)) == 59
    return made
