from click.testing import CliRunner

from liquidmm.cli import main
from liquidmm.data.samples import Sample


def test_verify_names_the_damaged_shard(tmp_path, write_folder):
    samples = [Sample(kind="text", key="t", text="hello")]
    folder = write_folder(tmp_path / "out", samples, samples)
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert (result.exit_code, result.stdout) == (
        0,
        f"{folder}: 2 shards, all intact\n",
    )
    path = folder / "shard-00001.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[700] ^= 1
    path.write_bytes(damaged)
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 1
    assert f"{path}: has SHA-256" in result.stderr
    assert "It was made from chunk 1: remove it" in result.stderr
    assert f"error: {folder}: 1 of 2 shards are damaged" in result.stderr
