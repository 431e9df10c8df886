"""Encoding of one chunk into samples: threads open its images, which are encoded in batches.

Samples and rejected records depend only on the chunk's records, the image tokenizer and the
configuration, not on the order in which threads finish. An image that several records share is
encoded once. Memory use is a few batches of images plus the codes of the chunk, regardless of file
sizes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from liquidmm.data.manifest import RejectedSample
from liquidmm.data.readers import ParsedRecord
from liquidmm.data.records import ImageSource, ImageTextRecord, Record, TextRecord, images_of
from liquidmm.data.samples import Codes, Sample
from liquidmm.encode.images import ImageTransform, Pixels, Size
from liquidmm.encode.progress import Counts
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

CPU_BATCH_PIXELS = 32 * 64 * 64
"""Maximum batch size on a CPU: larger batches do not fit in its caches, which is slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A record with images that are not encoded yet."""

    parsed: ParsedRecord
    """The record's position in the source; the record itself is not kept."""
    sample: Sample | None
    """The sample without codes; None if the record was rejected."""
    images: tuple[str, ...] = ()
    """Names of its images."""


@dataclass(slots=True)
class _Images:
    """The images of a chunk."""

    opening: deque[tuple[str, Future[Pixels | str]]] = field(default_factory=deque)
    """Name and result (pixels or error message), in the order of the records."""
    batches: defaultdict[Size, list[tuple[str, Pixels]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Opened images by size that do not fill a batch yet."""
    codes: dict[str, Codes | str] = field(default_factory=dict)
    """Codes or error message by name."""
    names: set[str] = field(default_factory=set)
    """Names of all images so far."""


class ChunkEncoder:
    """Encodes chunks one after the other; a context manager that ends its threads."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        transform: ImageTransform,
        batch_size: int,
        decode_threads: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._transform = transform
        self._batch_size = batch_size
        # enough to keep the threads busy while a batch is encoded
        self._max_opening = batch_size + 2 * decode_threads
        self._threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    def __enter__(self) -> ChunkEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads and drop the work they have not started."""
        self._threads.shutdown(cancel_futures=True)

    def encode(
        self, records: Iterable[ParsedRecord], source: str, report: Callable[[Counts], None]
    ) -> tuple[list[Sample], list[RejectedSample]]:
        """Encode the records of one chunk.

        Args:
            records: The chunk, read as a stream.
            source: Name of the source for rejected samples.
            report: Called after every record and batch; an exception from it ends the encoding.

        Returns:
            The samples and the rejected records, each in order.

        Raises:
            LiquidError: A URL cannot be read right now.
        """
        images = _Images()
        pending = []
        for parsed in records:
            pending.append(self._start(parsed, images))
            rejected = parsed.record is None
            report(Counts(records=1, rejected=rejected, problem=parsed.problem if rejected else ""))
            while len(images.opening) > self._max_opening:
                self._take_opened(images, report)
        while images.opening:
            self._take_opened(images, report)
        for batch in images.batches.values():
            self._encode_batch(batch, images, report)
        return _collect(pending, images.codes, source)

    def _start(self, parsed: ParsedRecord, images: _Images) -> _Pending:
        """Let the threads open the images of a record."""
        record = parsed.record
        if record is None:
            return _Pending(parsed=parsed, sample=None)
        names = []
        for image in images_of(record):
            name = hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else str(image)
            names.append(name)
            if name not in images.names:
                images.names.add(name)
                images.opening.append((name, self._threads.submit(self._open, image)))
        # the record can contain a whole file, which must not stay in memory
        return _Pending(
            parsed=replace(parsed, record=None), sample=_sample_of(record), images=tuple(names)
        )

    def _open(self, image: ImageSource) -> Pixels | str:
        try:
            return self._transform.open(image, "image" if isinstance(image, bytes) else str(image))
        except DataError as error:
            return str(error)

    def _take_opened(self, images: _Images, report: Callable[[Counts], None]) -> None:
        """Wait for the next image, and encode its batch if it is full."""
        name, future = images.opening.popleft()
        pixels = future.result()
        if isinstance(pixels, str):
            images.codes[name] = pixels
            report(Counts(rejected=1, problem=pixels))
            return
        height, width = pixels.shape[:2]
        batch = images.batches[width, height]
        batch.append((name, pixels))
        limit = self._batch_size
        if self._tokenizer.device.type == "cpu":
            limit = max(1, min(limit, CPU_BATCH_PIXELS // (width * height)))
        if len(batch) >= limit:
            self._encode_batch(batch, images, report)
            batch.clear()

    def _encode_batch(
        self, batch: list[tuple[str, Pixels]], images: _Images, report: Callable[[Counts], None]
    ) -> None:
        if not batch:
            return
        stack = torch.from_numpy(np.stack([pixels for _, pixels in batch]))  # (B, H, W, 3)
        codes = self._tokenizer.encode(stack.permute(0, 3, 1, 2)).cpu().numpy()  # (B, h, w)
        images.codes |= zip((name for name, _ in batch), codes.astype(np.uint16), strict=True)
        report(Counts(images=len(batch)))


def _collect(
    pending: Iterable[_Pending], codes: dict[str, Codes | str], source: str
) -> tuple[list[Sample], list[RejectedSample]]:
    samples: list[Sample] = []
    rejected: list[RejectedSample] = []
    for item in pending:
        parsed, problem = item.parsed, item.parsed.problem
        if item.sample is not None:
            found = [codes[name] for name in item.images]
            problems = [entry for entry in found if isinstance(entry, str)]
            if not problems:
                grids = tuple(entry for entry in found if not isinstance(entry, str))
                samples.append(replace(item.sample, image_codes=grids))
                continue
            has_place = problems[0].startswith(f"{parsed.where}: ")
            problem = problems[0] if has_place else f"{parsed.where}: {problems[0]}"
        rejected.append(
            RejectedSample(source=source, line=parsed.line, where=parsed.where, reason=problem)
        )
    return samples, rejected


def _sample_of(record: Record) -> Sample:
    """Create the sample of a record, without codes."""
    sample = partial(Sample, key=record.key, source=record.source, license=record.license)
    if isinstance(record, TextRecord):
        return sample(kind="text", text=record.text)
    if isinstance(record, ImageTextRecord):
        return sample(kind="image_text", captions=record.captions)
    return sample(kind="chat", messages=record.messages)
