import json

import pytest
import torch
from safetensors.torch import load_file

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.image_tokenizer.tokenizer import ImageTokenizer, VQGANTokenizer, load_image_tokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

CONFIG = VQGANConfig(
    resolution=16,
    base_channels=8,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    latent_channels=8,
    code_dim=4,
    codebook_size=32,
)


@pytest.fixture
def tokenizer() -> VQGANTokenizer:
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    model.quantize.embedding.weight.data.normal_()
    return VQGANTokenizer(model)


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_tokenizer_has_the_protocol(tokenizer):
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.codebook_size, tokenizer.downsample_factor, tokenizer.resolution) == (
        32,
        4,
        16,
    )
    codes = tokenizer.encode(random_images(2, 3, 8, 12))
    made = tokenizer.decode(codes)
    assert (codes.shape, codes.dtype) == ((2, 2, 3), torch.int64)
    assert (made.shape, made.dtype) == ((2, 3, 8, 12), torch.float32)
    assert made.abs().max() <= 1


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (random_images(3, 8, 8), r"pixels.*\(B, 3, H, W\)"),
        (random_images(1, 1, 8, 8), r"pixels.*\(B, 3, H, W\)"),
        (random_images(1, 3, 8, 10), "pixels.*factor 4.*10 x 8"),
        (random_images(1, 3, 0, 8), "8 x 0"),
        (random_images(1, 3, 8, 8) * 2, r"outside \[-1, 1\]"),
        (random_images(1, 3, 8, 8) * torch.nan, "NaN"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "torch.int64"),
        (torch.zeros(1, 3, 8, 10, dtype=torch.uint8), "10 x 8"),
    ],
)
def test_encode_rejects_invalid_pixels(tokenizer, pixels, words):
    with pytest.raises(ValueError, match=words):
        tokenizer.encode(pixels)


def test_encode_uint8_equals_float(tokenizer):
    pixels = (random_images(2, 3, 8, 12) * 127.5 + 127.5).round().to(torch.uint8)
    scaled = pixels.float().div(127.5).sub(1.0)
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(scaled))


def test_latents_are_equal_with_and_without_gradients(tokenizer):
    pixels = random_images(2, 3, 16, 16)
    before = pixels.clone()
    with torch.no_grad():
        latents = tokenizer.model.encode_latents(pixels)
        decoded = tokenizer.model.decode_latents(latents)
    assert torch.equal(pixels, before)
    assert torch.equal(latents, tokenizer.model.encode_latents(pixels))
    assert torch.equal(decoded, tokenizer.model.decode_latents(latents))


def test_bfloat16_agrees_in_most_codes(tokenizer):
    pixels = random_images(16, 3, 64, 64)
    exact = tokenizer.encode(pixels)
    assert tokenizer.code_match(pixels) == 1.0
    tokenizer.precision = "bfloat16"
    share = (tokenizer.encode(pixels) == exact).float().mean().item()
    assert tokenizer.code_match(pixels) == share
    assert 0.8 < share < 1.0  # the latents are rounded, the search is not
    assert tokenizer.precision == "bfloat16"
    tokenizer.to(torch.device("cpu")).precision = "float32"
    assert torch.equal(tokenizer.encode(pixels), exact)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), r"codes.*\(B, h, w\)"),
        (torch.zeros(1, 2, 2), "torch.float32"),
        (torch.full((1, 2, 2), 32), r"codes.*0\.\.31, got 32"),
        (torch.full((1, 2, 2), -1), "got -1"),
    ],
)
def test_decode_rejects_invalid_codes(tokenizer, codes, words):
    with pytest.raises(ValueError, match=words):
        tokenizer.decode(codes)


def test_float32_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    loaded = load_image_tokenizer(tmp_path / "t")
    assert loaded.fingerprint == tokenizer.fingerprint
    x = random_images(2, 3, 16, 16)
    assert torch.equal(loaded.encode(x), tokenizer.encode(x))
    codes = tokenizer.encode(x)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    loaded.save(tmp_path / "t")  # replacing a tokenizer is fine
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_bfloat16_round_trip_is_lossless(tokenizer, tmp_path):
    tokenizer.save_dtype = "bfloat16"
    tokenizer.save(tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    first = load_image_tokenizer(tmp_path / "a")
    first.save(tmp_path / "b")
    second = load_image_tokenizer(tmp_path / "b")
    assert first.fingerprint == second.fingerprint != tokenizer.fingerprint
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first.model.quant_conv.weight.dtype == torch.float32


def test_fingerprint_ignores_decoder(tokenizer):
    state = {name: value.clone() for name, value in tokenizer.model.state_dict().items()}

    def changed(name: str) -> str:
        model = VQGAN(CONFIG)
        model.load_state_dict({**state, name: state[name] + 1})
        return VQGANTokenizer(model).fingerprint

    assert len(tokenizer.fingerprint) == 16
    assert changed("decoder.conv_in.bias") == tokenizer.fingerprint
    assert changed("encoder.conv_in.bias") != tokenizer.fingerprint
    assert changed("quantize.embedding.weight") != tokenizer.fingerprint


def test_load_rejects_other_folders(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_image_tokenizer(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not an image tokenizer"):
        load_image_tokenizer(tmp_path)
    good = tmp_path / "good"
    tokenizer.save(good)
    (good / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_image_tokenizer(good)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"format": "liquidmm.vqgan.9"}, CheckpointError, "format.*Update liquidmm"),
        ({"storage": "int8"}, CheckpointError, "storage.*float32, bfloat16.*int8"),
        ({"vqgan": {"codebok_size": 3}}, ConfigError, "codebook_size"),
        ({"vqgan": {"codebook_size": 8}}, CheckpointError, "quantize.embedding.weight.*shape"),
        ({"decoder": False}, CheckpointError, "unknown tensor decoder"),
    ],
)
def test_load_rejects_wrong_configuration(tokenizer, tmp_path, change, kind, words):
    tokenizer.save(tmp_path / "t")
    file = tmp_path / "t" / "config.json"
    description = json.loads(file.read_text())
    if "vqgan" in change:
        change = {"vqgan": {**description["vqgan"], **change["vqgan"]}}
    file.write_text(json.dumps({**description, **change}))
    with pytest.raises(kind, match=words):
        load_image_tokenizer(tmp_path / "t")
