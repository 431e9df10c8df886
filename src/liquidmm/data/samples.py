"""One training record with its images as VQ codes."""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from liquidmm.data.manifest import ShardStats
from liquidmm.data.records import Message

SampleKind: TypeAlias = Literal["text", "image_text", "chat"]
SAMPLE_KINDS: tuple[SampleKind, ...] = get_args(SampleKind)
"""The kinds of sample, in their order in a shard."""

Codes: TypeAlias = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One record with its images as codes; fields that the kind does not use are empty."""

    kind: SampleKind
    key: str
    """Key of the record, used in messages."""
    source: str = ""
    """Name of the record's dataset."""
    license: str = ""
    """SPDX identifier of the license, empty if unknown."""
    text: str = ""
    """The document of a text sample."""
    captions: tuple[str, ...] = ()
    """The captions of an image_text sample, the canonical one first."""
    messages: tuple[Message, ...] = ()
    """The turns of a chat sample."""
    image_codes: tuple[Codes, ...] = ()
    """Codes of each image, (h, w) uint16, in [0, codebook_size)."""

    def checksum(self) -> int:
        """Return the CRC-32 of all values that training reads."""
        texts = [self.kind, self.key, self.source, self.license, self.text, *self.captions]
        texts += (text for message in self.messages for text in (message.role, message.content))
        check = zlib.crc32("\0".join(texts).encode())
        for codes in self.image_codes:
            check = zlib.crc32(codes.tobytes(), zlib.crc32(b"%d %d" % codes.shape, check))
        return check


def shard_stats(samples: Sequence[Sample], rejected: int) -> ShardStats:
    """Count the content of one shard."""
    characters: Counter[str] = Counter()
    for sample in samples:
        turns = (message.content for message in sample.messages)
        characters[sample.kind] += sum(map(len, (sample.text, *sample.captions, *turns)))
    shapes = [codes.shape for sample in samples for codes in sample.image_codes]
    return ShardStats(
        records=len(samples),
        rejected=rejected,
        images=len(shapes),
        kinds=dict(Counter(sample.kind for sample in samples)),
        characters=dict(characters),
        licenses=dict(Counter(sample.license for sample in samples)),
        sources=dict(Counter(sample.source for sample in samples)),
        sizes=dict(Counter(f"{width} x {height}" for height, width in shapes)),
    )
