import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liquidmm.errors import DataError
from liquidmm.evaluate.reconstruction import RECONSTRUCTION, load_pixels, read_images
from liquidmm.evaluate.runner import EvaluateConfig, run
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer


@pytest.fixture
def tokenizer(tmp_path: Path, checkpoint: Any) -> Path:
    """Folder of an image tokenizer; one code for 4 x 4 pixels."""
    assert isinstance(checkpoint.image_tokenizer, VQGANTokenizer)
    checkpoint.image_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def save(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.rand(
        size[1], size[0], 3, generator=torch.Generator().manual_seed(len(path.name))
    )
    Image.fromarray((pixels * 255).byte().numpy()).save(path)


def measure(tokenizer: Path, data: Path, **options: Any) -> dict[str, float]:
    config = EvaluateConfig(checkpoint=tokenizer, data=data, device="cpu", **options)
    report = run("reconstruction", {"reconstruction": RECONSTRUCTION}, config)
    return {name: metric.value for name, metric in report.metrics.items()}


def test_folder_of_images_of_different_sizes(tokenizer: Path, tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", (16, 16))
    save(tmp_path / "images/below/b.jpg", (22, 17))
    save(tmp_path / "images/below/c.png", (16, 16))
    (tmp_path / "images/notes.txt").write_text("not an image")
    found = measure(tokenizer, tmp_path / "images")
    assert list(found) == [
        "psnr_mean", "psnr_median", "codebook_use", "codebook_perplexity", "n",
    ]  # fmt: skip
    assert found["n"] == 3
    assert 0 < found["psnr_mean"] < 40
    assert 100 / 16 <= found["codebook_use"] <= 100
    assert 1 <= found["codebook_perplexity"] <= 16
    assert measure(tokenizer, tmp_path / "images", limit=2)["n"] == 2


def test_records_are_measured_by_split(tokenizer: Path, tmp_path: Path) -> None:
    rows = []
    for number, split in enumerate(("held_out", "train", "train")):
        save(tmp_path / f"{number}.png", (16, 16))
        rows.append({"image": f"{number}.png", "caption": "a", "split": split})
    for name in ("records.jsonl", "other.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure(tokenizer, tmp_path)
    assert (found["trained_n"], found["held_out_n"]) == (2, 1)
    assert measure(tokenizer, tmp_path / "other.jsonl") == found
    assert list(read_images(tmp_path)) == ["train", "held_out"]


def test_pixels_are_cropped_or_resized(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (23, 9))
    assert load_pixels(tmp_path / "a.png", 8).shape == (3, 8, 16)
    assert load_pixels(tmp_path / "a.png", 8, 32).shape == (3, 32, 32)


def test_folder_without_images_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no images.*--data"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="contains no images"):
        read_images(tmp_path / "nothing")
