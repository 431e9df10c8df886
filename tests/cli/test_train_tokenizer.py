import json

import pytest
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main

RUN = """
out = "out"
[data]
images = ["images"]
resolution = 16
[vqgan]
resolution = 16
base_channels = 8
channel_multipliers = [1, 2]
num_res_blocks = 1
latent_channels = 8
code_dim = 4
codebook_size = 16
[codebook]
warmup_steps = 1
[train]
steps = 3
batch_size = 2
device = "cpu"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.effect_noise((16, 16), 80).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "run.toml").write_text(RUN)
    return lambda *options: CliRunner().invoke(main, ["train-tokenizer", "run.toml", *options])


def test_train_tokenizer_stops_and_resumes(run, tmp_path):
    for options in (["--stop-at", "2"], ["--resume"]):
        result = run(*options)
        assert result.exit_code == 0, result.output
        assert result.stdout == "out/tokenizer\n"
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3


def test_train_tokenizer_reports_old_key(run, tmp_path):
    result = run("--set", "train.learning_rate=1e-3")
    assert result.exit_code == 1
    assert "train.learning_rate: unknown key. It is now 'lr'." in result.stderr
    assert not (tmp_path / "out").exists()
