import json

import pytest
from click.testing import CliRunner

from liquidmm.cli import main


@pytest.fixture
def folder(tmp_path):
    """A folder with only what `info` reads: configuration and sizes of files, no weights."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 24}
    layout = {
        "text_size": 10,
        "image_offset": 16,
        "codebook_size": 8,
        "boi": 3,
        "eoi": 4,
        "unconditional": 5,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "processor_config.json").write_text(json.dumps({"vocabulary": layout}))
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**19))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["info", *map(str, arguments)])


def test_info_shows_installation():
    result = run()
    assert result.exit_code == 0, result.output
    assert result.output.startswith("installation\n  liquidmm ")


def test_info_checkpoint_as_json(folder):
    result = run(folder, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"installation", "checkpoint"}
    assert report["checkpoint"] == {
        "folder": str(folder),
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "vocab_size": 24,
        "text_size": 10,
        "image_offset": 16,
        "codebook_size": 8,
        "boi": 3,
        "eoi": 4,
        "unconditional": 5,
        "weights_mib": 1.5,
        "image_tokenizer_mib": 0.0,
    }


def test_info_checkpoint_as_text(folder):
    result = run(folder)
    assert "checkpoint\n" in result.stdout
    assert f"  {'image_offset':24} 16\n" in result.stdout


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
        (
            lambda folder: (folder / "processor_config.json").unlink(),
            "liquid expand",
        ),
    ],
)
def test_info_of_broken_folder_is_one_line_error(folder, spoil, words):
    spoil(folder)
    result = run(folder)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {folder}")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
