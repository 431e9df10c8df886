"""The training order: a function from an index to a sample of a source.

There is no state, so every index costs the same. Each epoch over a source has its own shuffled
order, and each example has its own random generator. After any number of samples, the number from
each source differs from the source's share by less than two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from liquidmm.data.examples import TASK_KINDS, TASKS, Example, ExampleBuilder, Probability, Task
from liquidmm.data.shards import SampleView, Shards, read_shards
from liquidmm.data.shuffle import round_keys, shuffled
from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.ranges import check_ranges

ORDER, CHOICES, BUFFER = range(3)
"""First element of the seeds for a source's order, for an example's random choices, and for the
order of the sequences in a packing buffer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of shards and its task."""

    path: Path
    """Folder that `liquid encode` wrote."""
    task: Task
    """Task to train on the samples; samples of a kind that the task does not use are skipped."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Relative share of the examples; weights can be fractions, ratios or counts. 0 disables the
    source."""
    max_samples: Annotated[int, Ge(0)] = 0
    """Number of samples to use. They are a fixed random subset that is the same for every seed and
    is contained in every larger subset. 0 uses all."""
    swap_ratio: Probability = 0.0
    """Fraction of `text_to_image` samples that are used for `image_to_text` instead (paper: 0.2).
    Each sample is used once per epoch, in one direction; each epoch swaps different samples."""

    RENAMED: ClassVar[Mapping[str, str]] = {"count": "max_samples", "reverse": "swap_ratio"}

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.task not in TASKS:
            raise ConfigError(f"task: unknown task '{self.task}'.{suggest(self.task, TASKS)}")
        if self.swap_ratio and self.task != "text_to_image":
            raise ConfigError(
                f"swap_ratio: {self.task} cannot be swapped. Set it only where task is "
                "text_to_image."
            )


def check_sources(sources: Sequence[Source]) -> None:
    """Check that there is a source to sample from.

    Raises:
        ConfigError: There are no sources, or all weights are 0.
    """
    if not sources:
        raise ConfigError("sources: is empty. Add at least one folder of shards.")
    if not any(source.weight for source in sources):
        raise ConfigError("sources: all weights are 0. Give one of them a weight above 0.")


class ShuffledSource:
    """An endless sequence of one source's examples, epoch after epoch, by index."""

    def __init__(
        self, source: Source, samples: SampleView, builder: ExampleBuilder, seed: tuple[int, ...]
    ) -> None:
        """Create the order; every source needs its own seed for its order and random choices."""
        self.size = source.max_samples or len(samples)
        """Samples per epoch."""
        self._source = source
        self._samples = samples
        self._builder = builder
        self._seed = seed

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, self.size)
        place = shuffled(place, self.size, round_keys((ORDER, *self._seed, epoch)))
        if self.size < len(self._samples):
            place = shuffled(place, len(self._samples), round_keys((ORDER,)))
        rng = np.random.default_rng((CHOICES, *self._seed, index))
        swap = self._source.swap_ratio and rng.random() < self._source.swap_ratio
        task: Task = "image_to_text" if swap else self._source.task
        return self._builder.build(self._samples[place], task, rng)


class WeightedSampler:
    """Maps sample n of a mixture to its source and its index in that source.

    Sources are processed one after the other. The first source gets its share of the first n
    samples, rounded up; the next source gets its share of the remaining weight from the remaining
    samples; and so on. Weights, which are at least 0 and not all 0, are exact decimal fractions, so
    the shares do not drift.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        fractions = [Fraction(str(weight)) for weight in weights]
        unit = lcm(*(fraction.denominator for fraction in fractions))
        self._shares = [int(fraction * unit) for fraction in fractions]

    def __getitem__(self, index: int) -> tuple[int, int]:
        start, end, remaining = index, index + 1, sum(self._shares)
        for place, share in enumerate(self._shares):
            rest_start = start * (remaining - share) // remaining
            rest_end = end * (remaining - share) // remaining
            if rest_start == rest_end:
                return place, start - rest_start
            start, end, remaining = rest_start, rest_end, remaining - share
        raise AssertionError("every sample belongs to a source")


def open_sources(
    sources: Sequence[Source], builder: ExampleBuilder, seed: int, tokenizer_fingerprint: str | None
) -> list[ShuffledSource]:
    """Open the folders of sources; a fingerprint of None skips the check of the image tokenizer.

    Raises:
        DataError: A folder cannot be read, was encoded with another image tokenizer, or has no
            samples or too few samples for a source.
    """
    codebook_size = builder.sequences.vocabulary.codebook_size
    opened = {path: read_shards(path) for path in dict.fromkeys(each.path for each in sources)}
    for shards in opened.values():
        _check_tokenizer(shards, codebook_size, tokenizer_fingerprint)
    return [
        ShuffledSource(source, _samples(source, opened[source.path]), builder, (seed, place))
        for place, source in enumerate(sources)
    ]


def _samples(source: Source, shards: Shards) -> SampleView:
    kind = TASK_KINDS[source.task]
    samples = shards.of_kind(kind)
    if not len(samples):
        raise DataError(
            f"{source.path}: no samples of kind {kind}, which {source.task} needs. Remove the "
            "source or choose another task."
        )
    if source.max_samples > len(samples):
        raise DataError(
            f"{source.path}: has {len(samples)} samples of kind {kind}, but max_samples is "
            f"{source.max_samples}. Lower it, or remove it to use all."
        )
    return samples


def _check_tokenizer(shards: Shards, codebook_size: int, fingerprint: str | None) -> None:
    provenance = shards.manifest.provenance
    if provenance.codebook_size != codebook_size:
        raise DataError(
            f"{shards.folder}: encoded with {provenance.codebook_size} codes, but the checkpoint "
            f"has {codebook_size}. Encode with the checkpoint's image tokenizer."
        )
    if fingerprint is not None and provenance.fingerprint != fingerprint:
        raise DataError(
            f"{shards.folder}: encoded with the image tokenizer {provenance.fingerprint}, but the "
            f"checkpoint has {fingerprint}. Encode with the checkpoint's image tokenizer."
        )
