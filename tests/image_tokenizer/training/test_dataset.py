from dataclasses import replace

import pytest
import torch

from liquidmm.errors import ConfigError, DataError
from liquidmm.image_tokenizer.training.config import ImageDataConfig
from liquidmm.image_tokenizer.training.dataset import get_batch, load_images


def test_load_images_by_split_or_fraction(images):
    config = ImageDataConfig(
        images=(images / "records.jsonl",), resolution=16, eval_splits=("held_out",)
    )
    by_split = load_images(config, 0)
    assert (len(by_split.train), len(by_split.eval)) == (9, 3)
    folder = replace(config, images=(images,), eval_splits=(), eval_fraction=0.25)
    by_share = load_images(folder, 0)
    assert (len(by_share.train), len(by_share.eval)) == (9, 3)
    combined = torch.cat(list(by_share)).flatten(1)
    assert len(torch.unique(combined, dim=0)) == 12
    with pytest.raises(ConfigError, match=r"data\.images.*Splits found: held_out, train"):
        load_images(replace(config, splits=("trian",)), 0)


def test_bad_source_is_named(images, tmp_path):
    def load(text):
        (tmp_path / "r.jsonl").write_text(text)
        return load_images(ImageDataConfig(images=(tmp_path / "r.jsonl",), resolution=16), 0)

    with pytest.raises(DataError, match=r"r.jsonl:2: invalid JSON"):
        load(f'{{"image": "{images}/00.png"}}\nnope\n')
    with pytest.raises(DataError, match=r'r.jsonl:1: .*"image"'):
        load('{"caption": "x"}\n')
    with pytest.raises(DataError, match="no such file"):
        load('{"image": "none.png"}\n')
    with pytest.raises(DataError, match="none.*folder or a .jsonl file"):
        load_images(ImageDataConfig(images=(tmp_path / "none",), resolution=16), 0)


def test_batches_cover_each_epoch():
    stack = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 4, 4).contiguous()
    config = ImageDataConfig(images=(), resolution=4)

    def seen(step):
        values = (get_batch(stack, step, 4, 7, config)[:, 0, 0, 0] + 1) * 127.5
        return values.round().int().tolist()

    order = [value for step in range(5) for value in seen(step)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert seen(3) == seen(3)
    moved = replace(config, shift=2, flip=True)
    x = get_batch(stack, 0, 4, 7, moved)
    assert torch.equal(x, get_batch(stack, 0, 4, 7, moved))
    assert x.max() == 1.0  # white came in at the border
