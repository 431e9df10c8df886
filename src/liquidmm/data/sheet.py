"""A look at encoded pictures: some of a folder, decoded from their codes.

Contract: the pictures are spread evenly over the captioned ones and filled up with those of
conversations; the same folder gives the same sheet. Nothing but the codes is read, so what is seen
is what a model is trained on.
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import torch
from PIL import Image

from liquidmm.data.shard_file import Row
from liquidmm.data.shards import Shards, read_shards
from liquidmm.errors import DataError
from liquidmm.image_tokenizer.images import contact_sheet, to_image
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

COLUMNS = 8
"""Pictures in a row."""
_SMALLEST = 128
"""Smaller pictures are shown enlarged to about this width, in pixels."""
_PLAIN = Image.Resampling.NEAREST


def sheet(folder: Path, tokenizer: ImageTokenizer, count: int = 48) -> Image.Image:
    """Decode some pictures of a folder of shards.

    Args:
        folder: A folder that `liquid encode` finished.
        tokenizer: The image tokenizer that it was encoded with.
        count: Pictures at most, 1 or more.

    Returns:
        The pictures in rows, each above its first caption or the name of its record.

    Raises:
        DataError: The folder can't be read, holds no pictures, or was encoded otherwise.
    """
    shards = read_shards(folder)
    origin = shards.manifest.origin
    if origin.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{folder}: was encoded with the image tokenizer {origin.fingerprint}, not with "
            f"{tokenizer.fingerprint}. Give the one it was encoded with (--tokenizer)."
        )
    images, captions = [], []
    for row in islice(_with_pictures(shards, count), count):
        codes = torch.from_numpy(row.pictures[0].astype("int64"))  # (h, w)
        image = to_image(tokenizer.decode(codes.unsqueeze(0))[0])
        scale = max(1, round(_SMALLEST / image.width))
        images.append(image.resize((image.width * scale, image.height * scale), _PLAIN))
        captions.append(row.captions[0] if row.captions else row.key)
    if not images:
        raise DataError(f"{folder}: holds no pictures. Leave --sheet out.")
    return contact_sheet(images, COLUMNS, captions)


def _with_pictures(shards: Shards, count: int) -> Iterator[Row]:
    pairs, chats = shards.of_kind("image_text"), shards.of_kind("chat")
    shown = min(count, len(pairs))
    spread = (pairs[number * len(pairs) // shown] for number in range(shown))
    return (row for row in chain(spread, chats) if row.pictures)
