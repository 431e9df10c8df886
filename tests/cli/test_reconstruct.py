import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = VQGANConfig(
        resolution=16,
        base_channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        codebook_size=16,
    )
    folder = tmp_path / "model"
    VQGANTokenizer(VQGAN(config)).save(folder / "image_tokenizer")
    Image.effect_noise((30, 20), 90).save(tmp_path / "in.png")
    return folder


def reconstruct(*arguments):
    return CliRunner().invoke(main, ["reconstruct", *map(str, arguments)])


def test_reconstruct_with_checkpoint_or_tokenizer(checkpoint, tmp_path):
    outputs = []
    for options in (["--checkpoint", checkpoint], ["--tokenizer", checkpoint / "image_tokenizer"]):
        out = tmp_path / f"{len(outputs)}.png"
        result = reconstruct(tmp_path / "in.png", "-o", out, *options)
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith(f" dB  {out}\n")
        outputs.append(out.read_bytes())
        assert Image.open(out).size == (44, 24)
    assert outputs[0] == outputs[1]


def test_reconstruct_resolution_must_be_multiple_of_factor(checkpoint, tmp_path):
    out = tmp_path / "out.png"
    arguments = (tmp_path / "in.png", "-o", out, "--checkpoint", checkpoint, "--resolution")
    assert reconstruct(*arguments, 24).exit_code == 0
    assert Image.open(out).size == (60, 32)
    result = reconstruct(*arguments, 25)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert all(word in result.stderr for word in ("--resolution", "factor 2", "25", "Use 24."))


@pytest.mark.parametrize(
    ("image", "out", "options", "words"),
    [
        ("none.png", "o.png", [], "no such file"),
        ("in.png", "o.txt", [], "'.txt'"),
        (
            "in.png",
            "o.png",
            ["--tokenizer", "x"],
            "--tokenizer cannot be combined with --checkpoint",
        ),
    ],
)
def test_reconstruct_errors_are_one_line(checkpoint, tmp_path, image, out, options, words):
    result = reconstruct(
        tmp_path / image, "-o", tmp_path / out, "--checkpoint", checkpoint, *options
    )
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / out).exists()
