"""A small network that knows the concepts of the real icons: a second way to compare pictures.

Trained on real icons of the train split only, with augmentation; the label is the concept, the same
across styles. Cached in the data folder under a name that carries the hash of its configuration and
of the icons it saw, with its own accuracy. Legend: N pictures, K concepts, F features.
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

from liquidmm import files
from liquidmm.errors import DataError
from liquidmm.evaluate.gallery import Icon, shrink
from liquidmm.evaluate.metrics import Tally
from liquidmm.image_tokenizer import images as pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Size and training of the concept classifier."""

    width: int = 32
    """Channels of the first layer; doubled at each of three halvings."""
    features: int = 128
    """Width of the feature vector, F."""
    steps: int = 1200
    """Training steps."""
    batch: int = 96
    """Pictures in a step."""
    learning_rate: float = 3e-3
    """Highest rate of the one-cycle schedule (AdamW)."""
    scale: float = 16.0
    """Factor on the cosines before the softmax."""
    seed: int = 0
    """Seed of the start, the order and the augmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How well the classifier names real icons itself."""

    train: Tally
    """On the icons that it was trained on."""
    held_out_pairs: Tally
    """On icons of unseen concept-style pairs; only those whose concept it knows."""


class ConceptNet(nn.Module):
    """Four convolution levels, their mean as a unit vector, cosine to one vector per concept."""

    def __init__(self, config: ClassifierConfig, concepts: Sequence[str]) -> None:
        """Build it with the current random state.

        Args:
            config: Its size.
            concepts: The K labels.
        """
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
        """Unit vectors, (N, F), of pictures (N, 3, 32, 32) in [-1, 1]."""
        pooled = self.trunk(images).mean((2, 3))  # (N, 8 * width)
        return functional.normalize(self.project(pooled), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled cosine to each concept, (N, K)."""
        return self.scale * self.features(images) @ functional.normalize(self.vectors, dim=1).T


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shift and tint pictures a little, each in its own way.

    Args:
        images: (N, 3, H, W) float32 in [-1, 1]; white is the ground that moves in at the edges.
        generator: Random state on the CPU.

    Returns:
        The same shape and range.
    """
    n = len(images)
    draw = (torch.rand(n, 6, generator=generator) * 2 - 1).to(images.device)  # each in [-1, 1]
    angle, scale = 0.2 * draw[:, 0], 1 + 0.15 * draw[:, 1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([cos, -sin, 0.12 * draw[:, 2], sin, cos, 0.12 * draw[:, 3]], dim=1)
    grid = functional.affine_grid(rows.view(n, 2, 3), list(images.shape), align_corners=False)
    # Moved to where white is 0, because grid_sample fills the edge with 0.
    moved = functional.grid_sample(images - 1, grid, align_corners=False)
    contrast = 1 + 0.2 * draw[:, 4].view(n, 1, 1, 1)
    tint = 0.15 * (torch.rand(n, 3, 1, 1, generator=generator).to(images.device) * 2 - 1)
    return ((moved * (contrast + tint)) + 1).clamp(-1, 1)


def load_classifier(
    icons: Sequence[Icon],
    folder: Path,
    config: ClassifierConfig | None = None,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> tuple[ConceptNet, Scores]:
    """The classifier of a data folder: from its cache if it is there, else trained and cached.

    Args:
        icons: All icons of the folder.
        folder: Where the cache file stands.
        config: Size and training; None for the default.
        on_step: Told the finished and all training steps.

    Returns:
        The network in evaluation mode on the CPU, and its own accuracy.

    Raises:
        DataError: There is no icon to train on.
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
    with files.atomic_file(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
            temporary,
            metadata,
        )
    return network, scores


def _fingerprint(icons: Sequence[Icon], config: ClassifierConfig) -> str:
    """Twelve hex digits that change with the configuration and with the icons and labels."""
    facts = [asdict(config), [(icon.key, icon.concept, icon.split) for icon in icons]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _read(path: Path, config: ClassifierConfig) -> tuple[ConceptNet, Scores]:
    """Load a cache file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        network = ConceptNet(config, json.loads(metadata["concepts"]))
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    scores = Scores(
        **{name: Tally(**tally) for name, tally in json.loads(metadata["scores"]).items()}
    )
    return network.eval(), scores


def _train(
    icons: Sequence[Icon], config: ClassifierConfig, on_step: Callable[[int, int], None]
) -> tuple[ConceptNet, Scores]:
    """Train on the train split; measure on it and on the held-out pairs."""
    seen = [icon for icon in icons if icon.split == "train"]
    if not seen:
        raise DataError(
            "icons: none with split 'train', so no classifier. "
            "Make the data again with `liquid data icons`."
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
        train=_score(network, images, labels),
        held_out_pairs=_score(network, *_load(unseen, concepts)),
    )


def _load(icons: Sequence[Icon], concepts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Small pictures (N, 3, 32, 32) and labels (N,) int64."""
    index = {concept: i for i, concept in enumerate(concepts)}
    return shrink(pixels.open_image(icon.image) for icon in icons), torch.tensor(
        [index[icon.concept] for icon in icons]
    )


@torch.no_grad()
def _score(network: ConceptNet, images: Tensor, labels: Tensor) -> Tally:
    """Top-1 accuracy."""
    hits = [
        network(part).argmax(1) == wanted
        for part, wanted in zip(torch.split(images, 512), torch.split(labels, 512), strict=True)
    ]
    return Tally.of(torch.cat(hits).tolist() if len(labels) else [])
