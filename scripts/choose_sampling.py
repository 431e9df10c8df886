"""Choose the default sampling of a checkpoint, and write it to its processor_config.json.

    python scripts/choose_sampling.py CHECKPOINT [DATA] [N]

Generates N trained icons (default 60) that `liquid evaluate icons` does not use, at each setting
below, and takes the one whose images are most often closest to the right real icon; of equals the
first, which is the more varied one.
"""

import dataclasses
import sys
from pathlib import Path

from liquidmm import SamplingConfig, load
from liquidmm.icons.benchmark.gallery import Gallery, read_icons, sample
from liquidmm.model.processor import LiquidProcessor

JUDGED = 200
"""Number of icons that the evaluation samples with seed 0; they are not used here."""

SETTINGS = tuple(
    SamplingConfig(guidance=guidance, temperature=temperature, top_k=0, top_p=top_p)
    for guidance in (1.0, 1.5, 2.0, 3.0)
    for temperature, top_p in ((0.7, 0.9), (0.2, 1.0))
)


def main() -> None:
    """Measure the settings and write the best."""
    folder = Path(sys.argv[1])
    icons = read_icons(Path(sys.argv[2] if len(sys.argv) > 2 else "data/icons"))
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 60
    judged = {icon.key for icon in sample(icons, "train", JUDGED, seed=0)}
    others = sample(icons, "train", JUDGED + count, seed=1)
    wanted = [icon for icon in others if icon.key not in judged][:count]
    gallery = Gallery(icons, {icon.style for icon in wanted})
    liquid = load(folder)
    scores = {}
    for setting in SETTINGS:
        images = liquid.generate_images([icon.captions[0] for icon in wanted], sampling=setting)
        nearest = gallery.nearest_concepts(images, [icon.style for icon in wanted])
        right = sum(a == b.concept for a, b in zip(nearest, wanted, strict=True))
        scores[setting] = right
        sys.stdout.write(f"{right:4d} of {len(wanted)} right  {setting}\n")
        sys.stdout.flush()
    processor = LiquidProcessor.from_pretrained(folder)
    processor.sampling = dataclasses.asdict(max(scores, key=lambda setting: scores[setting]))
    processor.save_pretrained(folder)
    sys.stdout.write(f"{folder}: default sampling is {processor.sampling}\n")


if __name__ == "__main__":
    main()
