from click.testing import CliRunner

from liquidmm.cli.export import command
from liquidmm.errors import ConfigError


def test_export_prints_folder(checkpoint_folder, tmp_path):
    out = tmp_path / "out"
    arguments = [str(checkpoint_folder), str(out), "--format", "vllm", "--dtype", "float16"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out}\n"
    assert (out / "model.safetensors").is_file()


def test_export_unknown_format_raises(checkpoint_folder, tmp_path):
    arguments = [str(checkpoint_folder), str(tmp_path / "out"), "--format", "tgi"]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "out").exists()


def test_export_without_format_is_usage_error(checkpoint_folder, tmp_path):
    result = CliRunner().invoke(command, [str(checkpoint_folder), str(tmp_path / "out")])
    assert result.exit_code == 2
