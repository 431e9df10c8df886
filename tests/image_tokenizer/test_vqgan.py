import pytest
import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.vqgan import VQGAN, Quantizer, VQGANConfig

SHAPE = {
    "base_channels": 32,
    "num_res_blocks": 2,
    "latent_channels": 24,
}


def make(**changes) -> VQGAN:
    values = {
        "resolution": 16,
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "latent_channels": 8,
        "code_dim": 4,
        "codebook_size": 32,
    }
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(**{**values, **changes})).eval()


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def randomize(model: torch.nn.Module) -> None:
    random = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        scale = 0.5 if name.endswith("embedding.weight") else 0.08
        value.data += torch.randn(value.shape, generator=random) * scale


def test_parameter_names_are_tamings():
    names = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    for name, shape in {
        "encoder.conv_in.weight": (8, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (8,),
        "encoder.down.0.downsample.conv.weight": (8, 8, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
        "encoder.mid.block_1.conv1.weight": (16, 16, 3, 3),
        "encoder.mid.attn_1.proj_out.weight": (16, 16, 1, 1),
        "encoder.norm_out.weight": (16,),
        "encoder.conv_out.weight": (8, 16, 3, 3),
        "quant_conv.weight": (4, 8, 1, 1),
        "quantize.embedding.weight": (32, 4),
        "post_quant_conv.weight": (8, 4, 1, 1),
        "decoder.conv_in.weight": (16, 8, 3, 3),
        "decoder.mid.attn_1.q.weight": (16, 16, 1, 1),
        "decoder.up.1.block.1.conv2.weight": (16, 16, 3, 3),
        "decoder.up.1.upsample.conv.weight": (16, 16, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (8, 16, 1, 1),
        "decoder.conv_out.weight": (3, 8, 3, 3),
    }.items():
        assert names[name] == shape
    assert "encoder.down.1.downsample.conv.weight" not in names
    assert "decoder.up.0.upsample.conv.weight" not in names


@pytest.mark.parametrize("attention", [None, [16]])
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_codes_equal_chameleon(attention, size):
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=12,
            num_embeddings=64,
            resolution=32,
            channel_multiplier=[1, 2, 2],
            attn_resolutions=attention,
            **SHAPE,
        )
    ).eval()
    randomize(theirs)
    config = VQGANConfig(
        code_dim=12,
        codebook_size=64,
        resolution=32,
        channel_multipliers=(1, 2, 2),
        attention_resolutions=tuple(attention or ()),
        **SHAPE,
    )
    ours = VQGAN(config, decoder=False).eval()
    ours.load_state_dict(theirs.state_dict())
    x = random_images(3, 3, *size)
    with torch.inference_mode():
        output = theirs.encode(x)
        latents = ours.encode_latents(x)
        codes = ours.encode(x)
    torch.testing.assert_close(ours.quantize(latents)[0], output.quantized_last_hidden_state)
    assert codes.shape == (3, size[0] // 4, size[1] // 4)
    assert codes.flatten().tolist() == output.image_tokens.flatten().tolist()
    assert len(codes.unique()) > 8


def test_decoder_equals_janus():
    """Janus numbers its levels from coarse to fine, always has attention on the coarsest level, and
    normalizes codebook vectors when it looks them up; otherwise it is the same decoder."""
    theirs = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=12,
            num_embeddings=64,
            channel_multiplier=[1, 2, 2],
            num_patches=5,
            **SHAPE,
        )
    ).eval()
    randomize(theirs)
    config = VQGANConfig(
        code_dim=12,
        codebook_size=64,
        resolution=32,
        channel_multipliers=(1, 2, 2),
        attention_resolutions=(8,),
        **SHAPE,
    )
    ours = VQGAN(config).eval()
    state = {}
    for name, value in theirs.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["decoder", "up"]:
            parts[2] = str(2 - int(parts[2]))
        state[".".join(parts)] = value
    key = "quantize.embedding.weight"
    state[key] = torch.nn.functional.normalize(state[key], dim=-1)
    ours.load_state_dict(state)
    codes = torch.randint(64, (2, 5, 5), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        wanted = theirs.decode(codes.flatten(1))
        made = ours.decode(codes)
    assert made.shape == (2, 3, 20, 20)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 14), (16, 16), (30, 2)])
def test_any_multiple_of_downsample_factor(height, width):
    model = make()
    codes = model.encode(random_images(2, 3, height, width))
    assert (codes.shape, codes.dtype) == ((2, height // 2, width // 2), torch.int64)
    assert model.decode(codes).shape == (2, 3, height, width)


@pytest.mark.parametrize("multipliers", [(1,), (1, 3), (1, 2, 4, 8)])
def test_narrow_and_deep_shapes(multipliers):
    model = make(base_channels=20, channel_multipliers=multipliers, attention_resolutions=(8,))
    assert model.config.downsample_factor == 2 ** (len(multipliers) - 1)
    assert model.decode(model.encode(random_images(1, 3, 16, 16))).shape == (1, 3, 16, 16)


def test_norm_groups_divide_channels():
    def groups(model):
        return {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}

    assert groups(make(base_channels=64, channel_multipliers=(1, 2))) == {32}
    assert groups(make(base_channels=20, channel_multipliers=(1,))) == {20}
    assert groups(make(base_channels=24, channel_multipliers=(1, 2), norm_groups=4)) == {4}


def test_nearest_is_independent_of_chunk():
    quantizer = Quantizer(40, 5)
    quantizer.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(101, 5, generator=torch.Generator().manual_seed(1))
    wanted = torch.cdist(vectors, quantizer.embedding.weight).argmin(1)
    assert torch.equal(quantizer.nearest(vectors), wanted)
    assert torch.equal(quantizer.nearest(vectors, chunk=7), wanted)


def test_quantizer_passes_gradients_straight_through():
    model = make()
    latents = random_images(2, 4, 3, 3).requires_grad_()
    quantized, codes, commitment = model.quantize(latents)
    torch.testing.assert_close(quantized, model.quantize.lookup(codes))
    (quantized.sum() + commitment).backward()
    pull = 2 * (latents - model.quantize.lookup(codes)) / latents.numel()
    torch.testing.assert_close(latents.grad, 1 + pull.detach())


def test_bfloat16_and_channels_last_stay_close():
    model, x = make(), random_images(2, 3, 16, 16)
    with torch.inference_mode():
        wanted = model.decode(model.encode(x))
        other = make().to(memory_format=torch.channels_last)
        torch.testing.assert_close(other.decode(model.encode(x)), wanted, atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.decode(model.encode(x))
    assert rough.shape == wanted.shape
    assert (rough.float() - wanted).abs().mean() < 0.2


def test_model_without_decoder_cannot_decode():
    model = VQGAN(make().config, decoder=False)
    assert not any(name.startswith("decoder.") for name in model.state_dict())
    with pytest.raises(RuntimeError, match="no decoder"):
        model.decode(torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 0}, "codebook_size.*at least 1.*0"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers.*\(1, 0\)"),
        ({"resolution": 15}, "resolution.*factor 2.*15"),
    ],
)
def test_invalid_config_names_field(changes, words):
    with pytest.raises(ConfigError, match=words):
        make(**changes)
