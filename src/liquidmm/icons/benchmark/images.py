"""Generated icons: prompt fidelity, and a contact sheet.

Prompt fidelity has three parts: trained (concept, style) pairs with the default guidance, held-out
pairs, and trained pairs without guidance. An image is correct if the nearest real icon of its style
shows the requested concept. "Nearest" is measured twice: by pixels at 32 x 32, and by the features
of a classifier that was trained on real icons only.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from liquidmm.errors import ConfigError
from liquidmm.evaluate.metrics import Accuracy
from liquidmm.evaluate.reconstruction import load_pixels, load_tokenizer, round_trip
from liquidmm.evaluate.runner import Context, Task
from liquidmm.files import atomic_file
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.icons.benchmark.classifier import ConceptNet, load_classifier
from liquidmm.icons.benchmark.gallery import Gallery, Icon, read_icons, sample
from liquidmm.image_tokenizer import images as image_files

UNGUIDED = 1.0
"""Guidance scale that disables guidance."""
SHEET_COLUMNS = 12
"""Icons per row of the contact sheet."""


def prompt_fidelity(context: Context) -> None:
    """Generate icons; count how often the nearest real icon of the style is the requested one.

    Raises:
        DataError: The icons are missing, or a split is empty.
    """
    seed = context.config.seed
    icons = read_icons(context.data)
    trained = sample(icons, "train", context.limit, seed)
    held_out = sample(icons, "held_out_pairs", context.limit, seed)
    # Load the model before training the classifier: a damaged checkpoint should fail at once.
    sampling = context.sampling()
    gallery = Gallery(icons, {icon.style for icon in (*trained, *held_out)})
    network, scores = load_classifier(
        icons, context.data, on_step=lambda done, steps: context.progress("classifier", done, steps)
    )
    parts = (
        ("trained", trained, sampling),
        ("held_out_pairs", held_out, sampling),
        ("unguided", trained, replace(sampling, guidance=UNGUIDED)),
    )
    for part, wanted, config in parts:
        images = _generate(context, part, wanted, config)
        _judge(context, part, wanted, images, gallery, network)
    report = context.report
    chance = sum(gallery.chance(icon.style) for icon in trained) / len(trained)
    report.add("chance", 100 * chance, "%")
    report.add("n", len(trained), "images")
    report.add("n_held_out_pairs", len(held_out), "images")
    report.add_accuracy("classifier_train", scores.train)
    report.add_accuracy("classifier_held_out_pairs", scores.held_out_pairs)


def contact_sheet(context: Context) -> None:
    """Write ``contact-sheet.png``: real icons, reconstructions, and images from their captions.

    The sheet has a block of three rows for trained icons and one for held-out pairs.

    Raises:
        ConfigError: ``out`` is not given.
        DataError: The icons are missing, or a split is empty.
    """
    out = context.config.out
    if out is None:
        raise ConfigError("out: is required for the contact sheet. Pass a folder with --out.")
    icons = read_icons(context.data)
    tokenizer = load_tokenizer(context)
    sampling = context.sampling()
    cells: list[Image.Image] = []
    captions: list[str] = []
    for split in ("train", "held_out_pairs"):
        chosen = sample(icons, split, min(context.limit, SHEET_COLUMNS), context.config.seed)
        context.progress(split, 0, len(chosen))
        originals = torch.stack(
            [load_pixels(icon.image, tokenizer.downsample_factor) for icon in chosen]
        )
        _, rebuilt = round_trip(tokenizer, originals)
        generated = context.model().generate_images(
            [icon.captions[0] for icon in chosen],
            seeds=[context.config.seed + i for i in range(len(chosen))],
            sampling=sampling,
        )
        rows = [
            ([image_files.to_image(pixels) for pixels in originals], [i.name for i in chosen]),
            ([image_files.to_image(pixels) for pixels in rebuilt], ["reconstructed"] * len(chosen)),
            (generated, [icon.style for icon in chosen]),
        ]
        side = max(96, originals.shape[-1])
        missing = SHEET_COLUMNS - len(chosen)
        for images, words in rows:
            cells += [image.resize((side, side), Image.Resampling.NEAREST) for image in images]
            # A short block is padded so that rows stay aligned.
            cells += [Image.new("RGB", (side, side), "white")] * missing
            captions += words + [""] * missing
        context.progress(split, len(chosen), len(chosen))
    path = out / "contact-sheet.png"
    with atomic_file(path) as temporary:
        image_files.contact_sheet(cells, SHEET_COLUMNS, captions).save(
            temporary, format="PNG", optimize=True
        )
    context.report.add("pictures", len(cells), "images")
    context.report.settings["file"] = str(path)


ICONS = Task(run=prompt_fidelity, data=Path("data/icons"), limit=200)
"""Prompt fidelity."""
CONTACT_SHEET = Task(run=contact_sheet, data=Path("data/icons"), limit=12, has_journal=False)
"""One PNG with real, reconstructed and generated icons."""


def _generate(
    context: Context, part: str, wanted: Sequence[Icon], sampling: SamplingConfig
) -> list[Image.Image]:
    """Generate one image per icon from its first caption; image i has seed ``seed + i``."""
    images: list[Image.Image] = []
    for start, chunk in context.chunks(part, wanted):

        def make(
            missing: list[int], start: int = start, chunk: Sequence[Icon] = chunk
        ) -> list[Image.Image]:
            return context.model().generate_images(
                [chunk[i].captions[0] for i in missing],
                seeds=[context.config.seed + start + i for i in missing],
                sampling=sampling,
            )

        keys = [
            f"{part}/{start + i:04d}-{icon.concept}-{icon.style}" for i, icon in enumerate(chunk)
        ]
        images += context.journal.images(keys, make)
    return images


def _judge(
    context: Context,
    part: str,
    wanted: Sequence[Icon],
    images: Sequence[Image.Image],
    gallery: Gallery,
    network: ConceptNet,
) -> None:
    """Report the accuracy by pixels and by features."""
    styles = [icon.style for icon in wanted]

    @torch.no_grad()
    def features(small: Tensor) -> Tensor:
        return torch.cat([network.features(chunk) for chunk in torch.split(small, 512)])

    for name, found in (
        (part, gallery.nearest_concepts(images, styles)),
        (f"{part}_features", gallery.nearest_concepts(images, styles, features)),
    ):
        hits = (a == icon.concept for a, icon in zip(found, wanted, strict=True))
        context.report.add_accuracy(name, Accuracy.of(hits))
