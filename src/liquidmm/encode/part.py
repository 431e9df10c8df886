"""One part of a source to rows: pictures opened by threads, encoded in batches of one size.

Contract: rows and refusals are a function of the entries, the tokenizer and the configuration: the
order in which threads finish changes nothing, and so does nothing outside the part. A picture that
several entries share is encoded once. In memory are a few batches of pictures and the codes of the
part, whatever the size of the files.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from liquidmm.data.manifest import RejectedSample
from liquidmm.data.readers import ParsedRecord
from liquidmm.data.records import ImageSource, ImageTextRecord, Record, TextRecord, images_of
from liquidmm.data.shard_file import Codes, Row
from liquidmm.encode.images import Pixels, Preparation, Size
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

CPU_BATCH = 32 * 64 * 64
"""Pixels of a batch on a CPU: more than fit its caches take longer and much memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What happened since the last time: for progress."""

    entries: int = 0
    """Entries that were read."""
    pictures: int = 0
    """Pictures that were encoded."""
    problem: str = ""
    """Why an entry or its picture can't be used; empty when it can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """An entry that waits for the codes of its pictures."""

    entry: ParsedRecord
    """Where it is, without its record."""
    row: Row | None
    """What becomes of it, without codes; None when it was refused."""
    pictures: tuple[str, ...] = ()
    """Names of its pictures."""


@dataclass(slots=True)
class _Pictures:
    """The pictures of a part: those that are being opened, those that wait, their codes."""

    opening: deque[tuple[str, Future[Pixels | str]]] = field(default_factory=deque)
    """Name and result, in the order of the entries."""
    waiting: defaultdict[Size, list[tuple[str, Pixels]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Prepared pictures of each size that don't fill a batch yet."""
    codes: dict[str, Codes | str] = field(default_factory=dict)
    """Codes by name, or the reason why there are none."""
    names: set[str] = field(default_factory=set)
    """All pictures so far."""


class PartEncoder:
    """Encodes parts, one after the other; a context manager that ends its threads."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        preparation: Preparation,
        batch_size: int,
        decoders: int,
    ) -> None:
        """Set up.

        Args:
            tokenizer: Turns pictures into codes.
            preparation: Brings them to its sizes.
            batch_size: Pictures encoded at once, at most.
            decoders: Threads that open and prepare pictures.
        """
        self._tokenizer = tokenizer
        self._preparation = preparation
        self._batch_size = batch_size
        # enough to keep the threads busy while a batch is encoded
        self._ahead = batch_size + 2 * decoders
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def __enter__(self) -> PartEncoder:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; what they have not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def encode(
        self, entries: Iterable[ParsedRecord], source: str, tell: Callable[[Seen], None]
    ) -> tuple[list[Row], list[RejectedSample]]:
        """Encode the entries of one part.

        Args:
            entries: The part; read as a stream.
            source: What refused entries are said to come from.
            tell: Called after every entry and batch; what it raises ends the work.

        Returns:
            The rows of the usable entries and the refusals of the others, each in order.

        Raises:
            LiquidError: A URL can't be read now.
        """
        pictures = _Pictures()
        places = []
        for entry in entries:
            places.append(self._place(entry, pictures))
            tell(Seen(entries=1, problem=entry.problem if entry.record is None else ""))
            while len(pictures.opening) > self._ahead:
                self._take(pictures, tell)
        while pictures.opening:
            self._take(pictures, tell)
        for batch in pictures.waiting.values():
            self._encode(batch, pictures, tell)
        return _sorted_out(places, pictures.codes, source)

    def _place(self, entry: ParsedRecord, pictures: _Pictures) -> _Place:
        record = entry.record
        if record is None:
            return _Place(entry=entry, row=None)
        names = []
        for picture in images_of(record):
            name = _name(picture)
            names.append(name)
            if name not in pictures.names:
                pictures.names.add(name)
                pictures.opening.append((name, self._threads.submit(self._open, picture)))
        # the record may hold the content of a file, which must not be kept
        return _Place(entry=replace(entry, record=None), row=_row(record), pictures=tuple(names))

    def _open(self, picture: ImageSource) -> Pixels | str:
        try:
            where = "picture" if isinstance(picture, bytes) else str(picture)
            return self._preparation.open(picture, where)
        except DataError as error:
            return str(error)

    def _take(self, pictures: _Pictures, tell: Callable[[Seen], None]) -> None:
        """Wait for the next picture, and encode a batch when it fills one."""
        name, future = pictures.opening.popleft()
        pixels = future.result()
        if isinstance(pixels, str):
            pictures.codes[name] = pixels
            tell(Seen(problem=pixels))
            return
        height, width = pixels.shape[:2]
        batch = pictures.waiting[width, height]
        batch.append((name, pixels))
        if len(batch) >= self._batch(width * height):
            self._encode(batch, pictures, tell)
            batch.clear()

    def _batch(self, area: int) -> int:
        if self._tokenizer.device.type != "cpu":
            return self._batch_size
        return max(1, min(self._batch_size, CPU_BATCH // area))

    def _encode(
        self,
        batch: list[tuple[str, Pixels]],
        pictures: _Pictures,
        tell: Callable[[Seen], None],
    ) -> None:
        if not batch:
            return
        stack = torch.from_numpy(np.stack([pixels for _, pixels in batch]))  # (B, H, W, 3)
        grids = self._tokenizer.encode(stack.permute(0, 3, 1, 2)).cpu().numpy()  # (B, h, w)
        pictures.codes |= zip((name for name, _ in batch), grids.astype(np.uint16), strict=True)
        tell(Seen(pictures=len(batch)))


def _sorted_out(
    places: Iterable[_Place], codes: dict[str, Codes | str], source: str
) -> tuple[list[Row], list[RejectedSample]]:
    rows: list[Row] = []
    refusals: list[RejectedSample] = []
    for place in places:
        entry, problem = place.entry, place.entry.problem
        if place.row is not None:
            found = [codes[name] for name in place.pictures]
            problems = [item for item in found if isinstance(item, str)]
            if not problems:
                grids = tuple(item for item in found if not isinstance(item, str))
                rows.append(replace(place.row, pictures=grids))
                continue
            named = problems[0].startswith(f"{entry.where}: ")
            problem = problems[0] if named else f"{entry.where}: {problems[0]}"
        refusals.append(
            RejectedSample(source=source, line=entry.line, where=entry.where, reason=problem)
        )
    return rows, refusals


def _row(record: Record) -> Row:
    """Make the row of a record, without codes."""
    key, source, licence = record.key, record.source, record.license
    if isinstance(record, TextRecord):
        return Row(kind="text", key=key, source=source, license=licence, text=record.text)
    if isinstance(record, ImageTextRecord):
        return Row(
            kind="image_text", key=key, source=source, license=licence, captions=record.captions
        )
    return Row(kind="chat", key=key, source=source, license=licence, messages=record.messages)


def _name(picture: ImageSource) -> str:
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    return str(picture)
