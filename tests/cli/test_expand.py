from click.testing import CliRunner

from liquidmm.cli.expand import command
from liquidmm.errors import ConfigError
from liquidmm.model.processor import LiquidProcessor


def test_expand_writes_checkpoint(base_folder, image_tokenizer_folder, tmp_path):
    out = tmp_path / "out"
    options = ["--image-tokenizer", str(image_tokenizer_folder), "--size", "16x8"]
    options += ["--init", "codebook", "--init-std", "0.5", "--dtype", "bfloat16", "--seed", "3"]
    result = CliRunner().invoke(command, [str(base_folder), str(out), *options])
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out}\n"
    processor = LiquidProcessor.from_pretrained(out)
    assert processor.sizes == ((16, 8),)
    assert processor.vocabulary.codebook_size == 16


def test_expand_rejects_codebook_size_0(base_folder, tmp_path):
    options = [str(base_folder), str(tmp_path / "out"), "--codebook-size", "0"]
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "out").exists()
