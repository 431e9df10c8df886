import json

import pytest
from click.testing import CliRunner

from liquidmm.cli.init import command as init
from liquidmm.errors import LiquidError

SHAPE = """
vocab_size = 300
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
"""


def test_init_from_run_file(tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"text": "plain"}))
    run, out = tmp_path / "run.toml", tmp_path / "base"
    run.write_text(f'out = "{out}"\ntexts = ["{records}"]\n[model]\n{SHAPE}\n')
    result = CliRunner().invoke(init, [str(run), "--set", "model.seed=3"])
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out}\n"
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('out = "x"\ntexts = []', "texts: is empty"),
        ('out = "x"\ntexts = ["no.jsonl"]', r"no\.jsonl: cannot be read"),
        ('out = "x"\ntexts = ["a"]\n[model]\nhiden_size = 3', "Did you mean 'hidden_size'"),
        ('out = "x"\ntexts = ["a"]\n[model]\nhidden = 3', "model.hidden: unknown key. It is now"),
        ('out = "x"\ntexts = ["a"]\n[base]\nseed = 3', "base: unknown key. It is now 'model'"),
    ],
)
def test_bad_run_file_is_reported(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(text)
    result = CliRunner().invoke(init, ["run.toml"])
    assert isinstance(result.exception, LiquidError)
    assert words.replace("\\", "") in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
