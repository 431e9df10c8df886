"""A tiny folder of icons, a checkpoint, and a model that knows the icons by heart."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

from liquidmm.cli.evaluate import tasks
from liquidmm.evaluate.report import Report
from liquidmm.evaluate.runner import EvaluateConfig, run
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.icons.benchmark import classifier
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

CONCEPTS = ("apple", "green apple", "tree", "blue whale", "star", "cup of tea")
STYLES = {"noto": (200, 40, 40), "fluent-emoji": (30, 60, 200)}
PHRASES = {"noto": "noto", "fluent-emoji": "fluent 3d"}


def draw_icon(concept: str, style: str) -> Image.Image:
    """Draw one pattern per concept, in the color of the style."""
    chance = random.Random(concept)
    image = Image.new("RGB", (32, 32), "white")
    brush = ImageDraw.Draw(image)
    for cell in range(16):
        if chance.random() < 0.5:
            left, top = 8 * (cell % 4), 8 * (cell // 4)
            brush.rectangle((left, top, left + 7, top + 7), fill=STYLES[style])
    return image


def caption_of(concept: str, style: str) -> str:
    return f"a {concept}, {PHRASES[style]} style"


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """Data folder: "star" in fluent-emoji is a held-out pair, "cup of tea" a held-out concept."""
    folder = tmp_path / "icons"
    rows = []
    for style in STYLES:
        (folder / "images" / style).mkdir(parents=True)
        for concept in CONCEPTS:
            slug = concept.replace(" ", "-")
            split = "held_out_pairs" if (slug, style) == ("star", "fluent-emoji") else "train"
            row = {
                "key": f"{style}/{slug}",
                "image": f"images/{style}/{slug}.png",
                "concept": slug,
                "style": style,
                "name": concept,
                "captions": [caption_of(concept, style), f"an emoji of a {concept}"],
                "split": "held_out_concepts" if concept == "cup of tea" else split,
                "license": "MIT",
            }
            draw_icon(concept, style).save(folder / str(row["image"]))
            rows.append(row)
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class KnowsByHeart:
    """Generates and names the icons of ``icons`` perfectly; without guidance, blank images."""

    sampling = SamplingConfig(guidance=3.0)

    def __init__(self) -> None:
        self.generated: list[tuple[str, int, float]] = []
        self.described = 0

    def generate_images(
        self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: SamplingConfig
    ) -> list[Image.Image]:
        self.generated += [
            (p, seed, sampling.guidance) for p, seed in zip(prompts, seeds, strict=True)
        ]
        known = {caption_of(c, s): (c, s) for c in CONCEPTS for s in STYLES}
        if sampling.guidance == 1:
            return [Image.new("RGB", (32, 32), "white") for _ in prompts]
        return [draw_icon(*known[prompt]).resize((64, 64)) for prompt in prompts]

    def describe_many(self, images: Sequence[Image.Image]) -> list[str]:
        self.described += len(images)
        return [self.describe(image) for image in images]

    def describe(self, image: Image.Image) -> str:
        for concept in CONCEPTS:
            for style in STYLES:
                if ImageChops.difference(image, draw_icon(concept, style)).getbbox() is None:
                    return caption_of(concept, style)
        return ""

    def ask_many(self, questions: Sequence[tuple[Image.Image, str]]) -> list[str]:
        return ["Yes." if question.startswith("Is") else "two" for _, question in questions]


@pytest.fixture
def model() -> KnowsByHeart:
    return KnowsByHeart()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Folder with a random image tokenizer and nothing else."""
    config = VQGANConfig(
        resolution=32,
        base_channels=8,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        codebook_size=16,
    )
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VQGANTokenizer(VQGAN(config)).save(folder / "image_tokenizer")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier that is trained in a second."""
    config = classifier.ClassifierConfig(
        width=8, features=16, steps=80, batch=16, learning_rate=1e-2
    )
    monkeypatch.setattr(classifier, "ClassifierConfig", lambda: config)


@pytest.fixture
def evaluate(quick: None, checkpoint: Path, icons: Path, model: Any) -> Any:
    """Run a task on the tiny icons."""

    def call(name: str, **options: Any) -> Report:
        options = {"data": icons, "checkpoint": checkpoint, "batch_size": 4, **options}
        return run(name, tasks(), EvaluateConfig(**options), lambda folder, device: model)

    return call
