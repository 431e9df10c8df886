"""A small concept classifier, which judges images without comparing pixels.

It is trained on augmented real icons of the train split; the label is the concept, which is the
same in all styles. The classifier is cached in the data folder with its accuracy; the file name
contains a hash of the configuration and the icons. Legend: N images, K concepts, F features.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from liquidmm.errors import DataError
from liquidmm.evaluate.metrics import Accuracy
from liquidmm.files import atomic_file
from liquidmm.icons.benchmark.gallery import Icon, shrink
from liquidmm.icons.io import REBUILD
from liquidmm.image_tokenizer.images import open_image


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Size and training of the concept classifier."""

    width: int = 32
    """Channels of the first layer; each of the three downsampling layers doubles them."""
    features: int = 128
    """Width of the feature vector, F."""
    steps: int = 1200
    """Training steps."""
    batch: int = 96
    """Images per step."""
    learning_rate: float = 3e-3
    """Peak learning rate of the one-cycle schedule (AdamW)."""
    scale: float = 16.0
    """Scale of the cosines before the softmax."""
    seed: int = 0
    """Seed for the initialization, the order and the augmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Accuracy of the classifier on real icons."""

    train: Accuracy
    """Accuracy on the training data."""
    held_out_pairs: Accuracy
    """Accuracy on unseen (concept, style) pairs of trained concepts."""


class ConceptNet(nn.Module):
    """Four convolutions, global pooling, and the cosine similarity to one vector per concept."""

    def __init__(self, config: ClassifierConfig, concepts: Sequence[str]) -> None:
        """Initialize with the global random state; `concepts` are the K labels."""
        super().__init__()
        self.concepts = tuple(concepts)
        self.scale = config.scale
        layers: list[nn.Module] = []
        before = 3
        for level in range(4):
            after = config.width * 2**level
            stride = 1 if level == 0 else 2
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(before, config.features)
        self.vectors = nn.Parameter(torch.randn(len(self.concepts), config.features))

    def features(self, images: Tensor) -> Tensor:
        """Return unit vectors, (N, F), of images (N, 3, 32, 32) in [-1, 1]."""
        pooled = self.trunk(images).mean((2, 3))  # (N, 8 * width)
        return functional.normalize(self.project(pooled), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scaled cosine to each concept, (N, K)."""
        return self.scale * self.features(images) @ functional.normalize(self.vectors, dim=1).T


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Slightly rotate, scale, shift and tint each image.

    Args:
        images: (N, 3, H, W) float32 in [-1, 1]; the background is white.
        generator: Random state on the CPU.

    Returns:
        The same shape and range.
    """
    n = len(images)
    noise = (torch.rand(n, 6, generator=generator) * 2 - 1).to(images.device)  # each in [-1, 1]
    angle, scale = 0.2 * noise[:, 0], 1 + 0.15 * noise[:, 1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([cos, -sin, 0.12 * noise[:, 2], sin, cos, 0.12 * noise[:, 3]], dim=1)
    grid = functional.affine_grid(rows.view(n, 2, 3), list(images.shape), align_corners=False)
    # White is mapped to 0 because grid_sample pads with 0.
    moved = functional.grid_sample(images - 1, grid, align_corners=False)
    contrast = 1 + 0.2 * noise[:, 4].view(n, 1, 1, 1)
    tint = 0.15 * (torch.rand(n, 3, 1, 1, generator=generator).to(images.device) * 2 - 1)
    return ((moved * (contrast + tint)) + 1).clamp(-1, 1)


def load_classifier(
    icons: Sequence[Icon],
    folder: Path,
    config: ClassifierConfig | None = None,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> tuple[ConceptNet, Scores]:
    """Load the classifier of a data folder, or train and cache it.

    Args:
        icons: All icons of the folder.
        folder: Folder of the cache file.
        config: Size and training; None uses the default.
        on_step: Called with the number of finished steps and the total.

    Returns:
        The network in evaluation mode on the CPU, and its accuracy.

    Raises:
        DataError: No icon is in the train split.
        LiquidError: The cache cannot be written.
    """
    config = config or ClassifierConfig()
    path = folder / f"concept-classifier-{_fingerprint(icons, config)}.safetensors"
    if path.is_file():
        return _read(path, config)
    network, scores = _train(icons, config, on_step)
    metadata = {
        "concepts": json.dumps(network.concepts),
        "scores": json.dumps(asdict(scores)),
        "config": json.dumps(asdict(config)),
    }
    with atomic_file(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
            temporary,
            metadata,
        )
    return network, scores


def _fingerprint(icons: Sequence[Icon], config: ClassifierConfig) -> str:
    """Return a hash of the configuration, icons and labels, as twelve hexadecimal digits."""
    facts = [asdict(config), [(icon.key, icon.concept, icon.split) for icon in icons]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _read(path: Path, config: ClassifierConfig) -> tuple[ConceptNet, Scores]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        network = ConceptNet(config, json.loads(metadata["concepts"]))
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    scores = Scores(
        **{name: Accuracy(**counts) for name, counts in json.loads(metadata["scores"]).items()}
    )
    return network.eval(), scores


def _train(
    icons: Sequence[Icon], config: ClassifierConfig, on_step: Callable[[int, int], None]
) -> tuple[ConceptNet, Scores]:
    seen = [icon for icon in icons if icon.split == "train"]
    if not seen:
        raise DataError(
            f"icons: no icon has split 'train', so no classifier can be trained. {REBUILD}"
        )
    concepts = sorted({icon.concept for icon in seen})
    unseen = [
        icon for icon in icons if icon.split == "held_out_pairs" and icon.concept in set(concepts)
    ]
    images, labels = _load(seen, concepts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ConceptNet(config, concepts)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1
    )
    network.train()
    for step in range(config.steps):
        rows = torch.randint(len(seen), (config.batch,), generator=generator)
        loss = functional.cross_entropy(network(augment(images[rows], generator)), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        on_step(step + 1, config.steps)
    network.eval()
    return network, Scores(
        train=_accuracy(network, images, labels),
        held_out_pairs=_accuracy(network, *_load(unseen, concepts)),
    )


def _load(icons: Sequence[Icon], concepts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return small images (N, 3, 32, 32) and labels (N,) int64."""
    index = {concept: i for i, concept in enumerate(concepts)}
    return shrink(open_image(icon.image) for icon in icons), torch.tensor(
        [index[icon.concept] for icon in icons]
    )


@torch.no_grad()
def _accuracy(network: ConceptNet, images: Tensor, labels: Tensor) -> Accuracy:
    hits = [
        network(part).argmax(1) == wanted
        for part, wanted in zip(torch.split(images, 512), torch.split(labels, 512), strict=True)
    ]
    return Accuracy.of(torch.cat(hits).tolist() if len(labels) else [])
