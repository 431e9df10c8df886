"""Records to shards: every picture becomes codes once, before training.

Contract: entry n of the selected part of the source goes to shard n // shard_records, whatever
happened before, so a second run continues at the first missing shard and a finished folder stays
as it is. An entry that cannot be used goes to `quarantine.jsonl` with its reason; a run in which
too many do is stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from liquidmm.config import to_dict
from liquidmm.data.manifest import Manifest, Origin, Refusal, Tallies, add_up
from liquidmm.data.records import ImageTextRecord, Picture, Record, TextRecord, pictures_of
from liquidmm.data.shard_file import Codes, Row, read_info, write_shard
from liquidmm.data.shard_folder import begin, finish, tally, write_quarantine
from liquidmm.data.sources import Entry, SourceConfig, digest, entries, parts
from liquidmm.errors import ConfigError, DataError
from liquidmm.vision.pixels import center_crop, open_image, pad_square, to_tensor

if TYPE_CHECKING:
    from liquidmm.vision.tokenizer import ImageTokenizer

X = TypeVar("X")

_CONTENT = ("size", "prepare", "max_aspect", "splits", "shard_records")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How pictures are prepared and rows are stored."""

    size: int = 512
    """Width and height of the prepared picture, in pixels; a multiple of the tokenizer's factor."""
    prepare: Literal["crop", "pad"] = "crop"
    """`crop` scales to cover the square and cuts the middle, `pad` shows all of it on grey."""
    max_aspect: float = 2.0
    """With `crop`, a picture this many times longer than wide (or wider) is refused; 0: none is."""
    splits: tuple[str, ...] = ()
    """Only records of these splits are encoded; empty takes all records."""
    batch_size: int = 32
    """Pictures encoded at once."""
    shard_records: int = 1024
    """Entries of the source per shard."""
    max_failures: float = 0.05
    """Share of refused entries above which the run stops, 0 to 1."""
    image_root: Path | None = None
    """Folder that relative picture paths in a file start from; None: the folder of the file."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("size", "batch_size", "shard_records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: is {getattr(self, name)}. Give 1 or more.")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures: is {self.max_failures}. Give a share from 0 to 1.")
        if self.max_aspect and self.max_aspect <= 1:
            raise ConfigError(f"max_aspect: is {self.max_aspect}. Give more than 1, or 0 for none.")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRun:
    """The run file of `liquid encode`."""

    source: Path
    """A JSONL, JSON or Parquet file of records, or a folder of pictures with captions."""
    tokenizer: Path
    """Folder or file of the image tokenizer."""
    out: Path
    """Folder for the shards."""
    device: str | None = None
    """Where pictures are encoded; None takes the best there is."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How pictures are prepared and rows are stored."""


def prepare(image: Image.Image, config: EncodeConfig, where: str = "picture") -> Image.Image:
    """Bring a picture to the configured square.

    Args:
        image: An upright RGB image of any size.
        config: The size and the way.
        where: Start of the error message, usually a file name.

    Returns:
        The picture, `config.size` pixels wide and high.

    Raises:
        DataError: With `crop`, the picture is too long to lose its ends.
    """
    if config.prepare == "pad":
        return pad_square(image, config.size)
    aspect = max(image.size) / min(image.size)
    if config.max_aspect and aspect >= config.max_aspect:
        raise DataError(
            f"{where}: {image.width} x {image.height} is {config.max_aspect:g} to 1 or longer. "
            "Crop it, raise max_aspect, or use prepare = 'pad'."
        )
    return center_crop(image, config.size, config.size)


def encode(
    source: Path,
    tokenizer: ImageTokenizer,
    out: Path,
    config: EncodeConfig,
) -> Manifest:
    """Encode a source into a folder of shards, or finish what an earlier run began.

    Args:
        source: A JSONL, JSON or Parquet file of records, or a folder of pictures with captions.
        tokenizer: Turns prepared pictures into codes; it moves them to its own device.
        out: Folder for shards, manifest and quarantine.
        config: How pictures are prepared and rows are stored.

    Returns:
        The manifest of the finished folder.

    Raises:
        ConfigError: The size does not fit the tokenizer, its codes do not fit 16 bits, or there is
            no folder `image_root`.
        DataError: The source is missing, the folder belongs to other settings, or too many
            entries were refused.
        LiquidError: The disk refused.
    """
    if config.size % tokenizer.factor:
        raise ConfigError(
            f"size: {config.size} is no multiple of the tokenizer's factor {tokenizer.factor}. "
            f"Take {max(1, round(config.size / tokenizer.factor)) * tokenizer.factor}."
        )
    if tokenizer.codebook_size > 2**16:
        raise ConfigError(
            f"tokenizer: {tokenizer.codebook_size} codes do not fit 16 bits. Use at most 65536."
        )
    total = sum(1 for _ in _selected(source, config))
    origin = Origin(
        fingerprint=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        factor=tokenizer.factor,
        source=str(source),
        source_digest=digest(_source(source, config)),
        settings=_content(config),
    )
    if not total:
        splits = f" of the splits {', '.join(config.splits)}" if config.splits else ""
        raise DataError(f"{source}: no records{splits}. Check the source.")
    count = -(-total // config.shard_records)
    missing = begin(out, origin, count)
    if not missing:
        return finish(out, origin, count)
    encoder = _Encoder(tokenizer, config)
    totals = tally(out)
    with tqdm(total=total, unit="rec", desc="encode", disable=None) as bar:
        for number, part in enumerate(_parts(_selected(source, config), config.shard_records)):
            if number in missing:
                name = f"{source}, entries {bar.n} to {bar.n + len(part) - 1}"
                rows, refusals = encoder.rows(part, source)
                path = write_shard(out, number, name, rows, refusals, tokenizer.codebook_size)
                totals = add_up([totals, read_info(path).tallies])
            bar.update(len(part))
            pictures = encoder.pictures / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{pictures:.0f} images/s, {totals.refused} refused")
            _check_failures(totals, config, out)
    return finish(out, origin, count)


class _Encoder:
    """Turns the entries of one shard into rows; a picture shared by several is encoded once."""

    def __init__(self, tokenizer: ImageTokenizer, config: EncodeConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.pictures = 0

    def rows(self, part: Sequence[Entry], source: Path) -> tuple[list[Row], list[Refusal]]:
        """Return the rows of the usable entries and the refusals of the others, each in order."""
        records = [entry.record for entry in part if entry.record is not None]
        codes = self._encode({_name(p): p for record in records for p in pictures_of(record)})
        rows: list[Row] = []
        refusals: list[Refusal] = []
        for entry in part:
            problem = entry.problem
            if entry.record is not None:
                found = [codes[_name(picture)] for picture in pictures_of(entry.record)]
                problems = [item for item in found if isinstance(item, str)]
                if not problems:
                    rows.append(_row(entry.record, [c for c in found if not isinstance(c, str)]))
                    continue
                problem = f"{entry.where}: {problems[0]}"
            refusals.append(
                Refusal(source=str(source), line=entry.line, where=entry.where, reason=problem)
            )
        return rows, refusals

    def _encode(self, pictures: dict[str, Picture]) -> dict[str, Codes | str]:
        """Return codes, or the reason why there are none, for each picture by name."""
        result: dict[str, Codes | str] = {}
        for batch in _parts(pictures.items(), self._config.batch_size):
            pixels: dict[str, torch.Tensor] = {}
            for name, picture in batch:
                try:
                    pixels[name] = to_tensor(prepare(open_image(picture), self._config, name))
                except DataError as error:
                    result[name] = str(error)
            if pixels:
                with torch.inference_mode():
                    stack = torch.stack(list(pixels.values()))  # (B, 3, H, W)
                    grids = self._tokenizer.encode(stack).cpu().numpy()  # (B, h, w)
                result |= zip(pixels, grids.astype(np.uint16), strict=True)
                self.pictures += len(pixels)
        return result


def _row(record: Record, pictures: Sequence[Codes]) -> Row:
    key, source, license_name = record.key, record.source, record.license
    if isinstance(record, TextRecord):
        return Row(kind="text", key=key, source=source, license=license_name, text=record.text)
    if isinstance(record, ImageTextRecord):
        return Row(
            kind="image_text",
            key=key,
            source=source,
            license=license_name,
            captions=record.captions,
            pictures=tuple(pictures),
        )
    return Row(
        kind="chat",
        key=key,
        source=source,
        license=license_name,
        messages=record.messages,
        pictures=tuple(pictures),
    )


def _source(source: Path, config: EncodeConfig) -> SourceConfig:
    root = None if config.image_root is None else str(config.image_root)
    return SourceConfig(path=str(source), image_root=root, splits=config.splits)


def _selected(source: Path, config: EncodeConfig) -> Iterator[Entry]:
    """Yield the entries to encode; a refused one has no split and always counts."""
    chosen = _source(source, config)
    for part in parts(chosen, config.shard_records):
        yield from entries(chosen, part)


def _content(config: EncodeConfig) -> dict[str, Any]:
    """Return the settings that decide the rows; a folder made without `image_root` stays valid."""
    settings = to_dict(config)
    names = _CONTENT if config.image_root is None else (*_CONTENT, "image_root")
    return {name: settings[name] for name in names}


def _check_failures(totals: Tallies, config: EncodeConfig, out: Path) -> None:
    seen = totals.records + totals.refused
    if totals.refused > config.max_failures * seen:
        raise DataError(
            f"{write_quarantine(out)}: {totals.refused} of {seen} entries were refused, more than "
            f"max_failures = {config.max_failures:g}. Correct the source or raise it."
        )


def _name(picture: Picture) -> str:
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    return str(picture)


def _parts(items: Iterable[X], size: int) -> Iterator[list[X]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
