import logging
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from liquidmm.data.readers import list_chunks
from liquidmm.encode import EncodeConfig, EngineConfig, TokenizerFile, encode
from liquidmm.encode.precision import choose_precision
from liquidmm.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A tokenizer file on a device that need not be there."""

    shares: dict
    precision: str = "float32"

    def __call__(self):
        share = self.shares.get(self.precision, 1.0)
        return SimpleNamespace(
            device=torch.device("cuda"), downsample_factor=8, agreement=lambda pixels: share
        )


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ({"bfloat16": 0.995, "tf32": 1.0}, "bfloat16"),
        ({"bfloat16": 0.97, "tf32": 0.995}, "tf32"),
        ({"bfloat16": 0.97, "tf32": 0.98}, "float32"),
    ],
)
def test_auto_takes_the_fastest_that_agrees(whole, shares, chosen, caplog):
    caplog.set_level(logging.INFO)
    config = replace(whole.config, precision="auto")
    found = list_chunks(whole.source, 2)
    assert choose_precision(Gpu(shares), whole.source, found, config, elsewhere=False) == chosen
    assert f"{shares['bfloat16']:.2%} of the codes in bfloat16" in caplog.text
    # nothing is known of the devices of a cluster
    assert choose_precision(Gpu(shares), whole.source, found, config, elsewhere=True) == "float32"


def test_one_that_is_asked_for_must_agree(whole, tmp_path):
    asked = EncodeConfig(size=96, shard_records=30, precision="bfloat16", agreement=0.2)
    one = EngineConfig(workers=1)
    manifest = encode(whole.source, whole.tokenizer, tmp_path / "out", asked, one)
    assert manifest.origin.settings["precision"] == "bfloat16"
    strict = replace(asked, agreement=1.0)
    with pytest.raises(ConfigError, match=r"precision: \d\d\.\d+% of the codes in bfloat16 are"):
        encode(whole.source, whole.tokenizer, tmp_path / "strict", strict)
    assert not (tmp_path / "strict").exists()
    exact = encode(whole.source, whole.tokenizer, tmp_path / "exact", EncodeConfig(size=96), one)
    assert "precision" not in exact.origin.settings


def test_tf32_needs_a_gpu_here_and_not_on_a_cluster(whole):
    config = EncodeConfig(size=96, precision="tf32")
    found = list_chunks(whole.source, 2)
    with pytest.raises(ConfigError, match="tf32 needs a CUDA device"):
        choose_precision(whole.tokenizer, whole.source, found, config, elsewhere=False)
    chosen = choose_precision(whole.tokenizer, whole.source, found, config, elsewhere=True)
    assert chosen == "tf32"


def test_a_tokenizer_is_loaded_once_in_a_process(image_tokenizer_folder):
    file = TokenizerFile(path=image_tokenizer_folder, device="cpu")
    assert file() is TokenizerFile(path=image_tokenizer_folder, device="cpu")()
    assert file() is not replace(file, precision="bfloat16")()
    assert replace(file, precision="bfloat16")().precision == "bfloat16"
