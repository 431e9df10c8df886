import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from liquidmm.errors import CheckpointError
from liquidmm.image_tokenizer import pretrained
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

CONFIG = VQGANConfig(
    resolution=16,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=8,
    code_dim=4,
    codebook_size=32,
)
YAML = """
model:
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 4
    n_embed: 32
    ddconfig:
      double_z: false
      z_channels: 8
      resolution: 16
      in_channels: 3
      out_ch: 3
      ch: 8
      ch_mult: [1, 2]
      num_res_blocks: 1
      attn_resolutions: []
      dropout: 0.0
    lossconfig:
      target: torch.nn.Identity
"""


def write_taming(folder, lightning=True):
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    state = {**model.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save(
        {"state_dict": state, "global_step": 7} if lightning else state, folder / "vqgan.ckpt"
    )
    (folder / "vqgan.yaml").write_text(YAML)
    return model


@pytest.mark.parametrize("lightning", [True, False])
def test_taming_round_trip(tmp_path, lightning):
    model = write_taming(tmp_path, lightning)
    for path in (tmp_path, tmp_path / "vqgan.ckpt"):
        loaded = load_image_tokenizer(path)
        assert loaded.model.config == CONFIG
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value), name


def test_taming_config_that_does_not_fit_is_rejected(tmp_path):
    write_taming(tmp_path)
    file = tmp_path / "vqgan.ckpt"
    (tmp_path / "vqgan.yaml").write_text(YAML.replace("ch: 8", "ch: 16"))
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.weight.*\(8, 3, 3, 3\)"):
        load_image_tokenizer(file)
    (tmp_path / "vqgan.yaml").write_text(YAML.replace("[1, 2]", "[1, 2, 2]"))
    with pytest.raises(CheckpointError, match="is missing"):
        load_image_tokenizer(file)
    (tmp_path / "vqgan.yaml").write_text("model: [")
    with pytest.raises(CheckpointError, match="vqgan.yaml.*taming"):
        load_image_tokenizer(file)
    (tmp_path / "vqgan.yaml").unlink()
    with pytest.raises(CheckpointError, match="vqgan.yaml"):
        load_image_tokenizer(file)


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {}, "note": Evil()}, "plain weights"),
        ({"a": torch.zeros(2)}, "no VQGAN weights"),
        (None, "plain weights"),
    ],
)
def test_taming_bad_file_is_one_line_error(tmp_path, capsys, content, words):
    write_taming(tmp_path)
    file = tmp_path / "vqgan.ckpt"
    if content is None:
        file.write_bytes(b"not a pickle")
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=words) as error:
        load_image_tokenizer(file)
    assert "\n" not in str(error.value)
    assert "ran code" not in capsys.readouterr().out


@pytest.fixture
def chameleon():
    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(
        embed_dim=12,
        num_embeddings=64,
        resolution=16,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        latent_channels=24,
    )
    model = ChameleonVQVAE(config).eval()
    model.quantize.embedding.weight.data.normal_()
    return model, {"model_type": "chameleon", "vq_config": config.to_dict()}


def test_chameleon_folder_encodes_like_transformers(tmp_path, chameleon, caplog):
    model, config = chameleon
    state = {f"model.vqmodel.{name}": value for name, value in model.state_dict().items()}
    names = sorted(state)
    # Sharded, with tensors of the language model among them, as published.
    save_file({n: state[n] for n in names[:20]}, tmp_path / "model-00001-of-00002.safetensors")
    rest = {n: state[n] for n in names[20:]}
    save_file(
        {**rest, "model.embed_tokens.weight": torch.zeros(2, 2)},
        tmp_path / "model-00002-of-00002.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretrained.show_license.cache_clear()
    with caplog.at_level(logging.WARNING, "liquidmm"):
        loaded = load_image_tokenizer(tmp_path)
        load_image_tokenizer(tmp_path)
    shown = [r for r in caplog.records if "Chameleon Research License" in r.getMessage()]
    assert len(shown) == 1
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        wanted = model.encode(x).image_tokens
    codes = loaded.encode(x)
    assert torch.equal(codes.flatten(), wanted.flatten())
    with pytest.raises(CheckpointError, match="no decoder"):
        loaded.decode(codes)
    loaded.save(tmp_path / "own")
    again = load_image_tokenizer(tmp_path / "own")
    assert torch.equal(again.encode(x), codes)
    with pytest.raises(CheckpointError, match="no decoder"):
        again.decode(codes)


def test_chameleon_without_weights_is_rejected(tmp_path, chameleon):
    _, config = chameleon
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no model.vqmodel"):
        load_image_tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"model.vqmodel.encoder.conv_in.bias": torch.zeros(32)}, file)
    with pytest.raises(CheckpointError, match="is missing"):
        load_image_tokenizer(file)
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_image_tokenizer(file)
