"""Prompt fidelity: is the real icon nearest to a drawn one the icon that was asked for?

Three parts: trained concept-style pairs at the default guidance, held-out pairs, and the trained
ones again with guidance 1. Each picture is judged twice, by pixels at 32 x 32 and by the features
of a classifier that has only seen real icons.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from liquidmm.evaluate.classifier import ConceptNet, load_classifier
from liquidmm.evaluate.gallery import Gallery, Icon, read_icons, sample
from liquidmm.evaluate.metrics import Tally
from liquidmm.evaluate.report import Context
from liquidmm.generate.sampling import SamplingConfig

UNGUIDED = 1.0
"""Guidance that leaves the conditional scores as they are."""


def prompt_fidelity(context: Context) -> None:
    """Draw seeded prompts; count how often the nearest real icon of the style is the right one.

    Raises:
        DataError: The icons are missing or a split is empty.
    """
    icons = read_icons(context.data)
    trained = sample(icons, "train", context.n, context.seed)
    unseen = sample(icons, "held_out_pairs", context.n, context.seed)
    # Before the classifier is trained: a broken checkpoint should show at once.
    sampling = context.chosen_sampling()
    gallery = Gallery(icons, {icon.style for icon in (*trained, *unseen)})
    network, scores = load_classifier(
        icons, context.data, on_step=lambda done, steps: context.progress("classifier", done, steps)
    )
    unguided = replace(sampling, guidance=UNGUIDED)
    parts = (
        ("trained", trained, sampling),
        ("held_out_pairs", unseen, sampling),
        ("unguided", trained, unguided),
    )
    for part, wanted, chosen in parts:
        images = _draw(context, part, wanted, chosen)
        _judge(context, part, wanted, images, gallery, network)
    report = context.report
    report.number(
        "chance", 100 * sum(gallery.chance(icon.style) for icon in trained) / len(trained), "%"
    )
    report.number("n", len(trained), "pictures")
    report.number("n_held_out_pairs", len(unseen), "pictures")
    report.share("classifier_train", scores.train)
    report.share("classifier_held_out_pairs", scores.held_out_pairs)


def _draw(
    context: Context, part: str, wanted: Sequence[Icon], sampling: SamplingConfig
) -> list[Image.Image]:
    """One picture for each icon's first caption; picture i has seed ``context.seed + i``."""
    images: list[Image.Image] = []
    for start, chunk in context.chunks(part, wanted):

        def make(
            missing: list[int], start: int = start, chunk: Sequence[Icon] = chunk
        ) -> list[Image.Image]:
            return context.model().generate_images(
                [chunk[i].captions[0] for i in missing],
                seeds=[context.seed + start + i for i in missing],
                sampling=sampling,
            )

        keys = [
            f"{part}/{start + i:04d}-{icon.concept}-{icon.style}" for i, icon in enumerate(chunk)
        ]
        images += context.journal.pictures(keys, make)
    return images


def _judge(
    context: Context,
    part: str,
    wanted: Sequence[Icon],
    images: Sequence[Image.Image],
    gallery: Gallery,
    network: ConceptNet,
) -> None:
    """Count the right ones by pixels and by features."""
    styles = [icon.style for icon in wanted]

    @torch.no_grad()
    def features(small: Tensor) -> Tensor:
        return torch.cat([network.features(chunk) for chunk in torch.split(small, 512)])

    by_pixels = gallery.nearest_concepts(images, styles)
    by_features = gallery.nearest_concepts(images, styles, features)
    concepts = [icon.concept for icon in wanted]
    context.report.share(part, Tally.of(a == b for a, b in zip(by_pixels, concepts, strict=True)))
    context.report.share(
        f"{part}_features", Tally.of(a == b for a, b in zip(by_features, concepts, strict=True))
    )
