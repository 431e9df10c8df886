"""The concept classifier on the tiny icons."""

from pathlib import Path

import pytest
import torch

from liquidmm.errors import DataError
from liquidmm.icons.benchmark.classifier import ClassifierConfig, augment, load_classifier
from liquidmm.icons.benchmark.gallery import read_icons

TINY = ClassifierConfig(width=8, features=16, steps=80, batch=16, learning_rate=1e-2)


def test_load_classifier_learns_and_caches(icons: Path) -> None:
    found = read_icons(icons)
    steps: list[int] = []
    network, scores = load_classifier(found, icons, TINY, lambda done, of: steps.append(done))
    assert steps[-1] == 80
    assert (scores.train.n, scores.held_out_pairs.n) == (9, 1)
    assert scores.train.right >= 8
    again, same = load_classifier(found, icons, TINY, lambda done, of: pytest.fail("trained again"))
    assert same == scores
    assert (
        again.concepts == network.concepts == ("apple", "blue-whale", "green-apple", "star", "tree")
    )
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(again.features(images), network.features(images))
    assert torch.allclose(again.features(images).norm(dim=1), torch.ones(3))


def test_load_classifier_caches_by_settings_and_icons(icons: Path) -> None:
    found = read_icons(icons)
    quick = ClassifierConfig(width=4, features=4, steps=1, batch=2)
    load_classifier(found, icons, quick)
    load_classifier(found[:8], icons, quick)
    assert len(list(icons.glob("concept-classifier-*.safetensors"))) == 2


def test_load_classifier_without_trained_icons_rejected(icons: Path) -> None:
    held_out = [icon for icon in read_icons(icons) if icon.split != "train"]
    with pytest.raises(DataError, match="split 'train'"):
        load_classifier(held_out, icons, TINY)


def test_augment_keeps_white_background_and_range() -> None:
    white = torch.ones(4, 3, 32, 32)
    assert augment(white, torch.Generator().manual_seed(0)).eq(1).all()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    first = augment(images, torch.Generator().manual_seed(0))
    assert first.shape == images.shape
    assert first.abs().max() <= 1
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(1)))
