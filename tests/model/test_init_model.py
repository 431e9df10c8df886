"""A base made from texts: shape, determinism, tokenizer, and bad input."""

import json
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from liquidmm import prompts
from liquidmm.cli.init import command as init_base
from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.model.init_model import InitConfig, create_base_model, build_model, read_texts

SMALL = {"vocab_size": 300, "hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1}
SHAPE = InitConfig(**SMALL, intermediate=24, context=64)


def test_the_base_is_a_stock_llama(base_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    assert type(model) is LlamaForCausalLM
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert model.config.vocab_size == len(tokenizer) == 360
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 1)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 256
    assert tokenizer.chat_template == prompts.CHATML_TEMPLATE


def test_any_text_survives_the_tokenizer(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    for text in ("don't , 120 cats .", "naïve 東京 🐱\n\ttab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4


def test_same_texts_and_seed_give_the_same_bytes(texts, tmp_path):
    state = torch.get_rng_state()
    folders = [create_base_model(texts, tmp_path / name, SHAPE) for name in "ab"]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in pairwise(folders):
        for path in one.iterdir():
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_the_seed_changes_the_weights_and_their_spread_is_as_said(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    big = {"vocab_size": 300, "hidden": 128, "layers": 2, "heads": 2, "kv_heads": 2}
    one, two = (build_model(InitConfig(**big, seed=seed), tokenizer) for seed in (0, 1))
    assert not torch.equal(one.lm_head.weight, two.lm_head.weight)
    layer = one.model.layers[0]
    for weight, expected in (
        (one.model.embed_tokens.weight, 0.02),
        (layer.self_attn.q_proj.weight, 0.02),
        (layer.self_attn.o_proj.weight, 0.01),
        (layer.mlp.down_proj.weight, 0.01),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
    assert layer.input_layernorm.weight.eq(1).all()


def test_the_default_has_11_million_parameters(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    shape = InitConfig()
    model = build_model(shape, tokenizer)
    body = sum(p.numel() for p in model.parameters()) - len(tokenizer) * shape.hidden
    assert 10.8e6 < body + 4096 * shape.hidden < 11.5e6


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text_is_refused(texts, tmp_path):
    with pytest.raises(DataError, match="there is no text"):
        create_base_model(texts, tmp_path / "out", SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 100}, r"base\.vocab_size: 100 is too small"),
        ({"layers": 0}, r"base\.layers: 0 is not positive"),
        ({"heads": 3}, r"base\.heads: 3 heads"),
        ({"kv_heads": 2, "heads": 5}, "multiple of the key-value heads"),
    ],
)
def test_a_shape_that_cannot_be(change, words):
    with pytest.raises(ConfigError, match=words):
        InitConfig(**change)


RECORDS = [
    {"text": "plain"},
    {"image": "a.png", "caption": "one"},
    {"image": "a.png", "captions": ["two", "three"]},
    {"image": "a.png", "text_prompt": "four"},
    {"messages": [{"role": "user", "content": "<image>\nWhat?"}], "images": ["a.png"]},
]


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)) + "\n\n")
    return path


def test_texts_of_every_kind_of_record(records):
    assert list(read_texts(records)) == ["plain", "one", "two", "three", "four", "What?"]


@pytest.mark.parametrize(
    ("line", "words"), [("{", r":6: is no JSON"), ("[1]", ":6: is no JSON object")]
)
def test_a_bad_line_is_named(records, line, words):
    records.write_text(records.read_text().rstrip() + "\n" + line)
    with pytest.raises(DataError, match=words):
        list(read_texts(records))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: can't be read"):
        list(read_texts(tmp_path / "no.jsonl"))


def test_init_base_from_a_run_file(records, tmp_path):
    shape = "\n".join(f"{name} = {value}" for name, value in SMALL.items())
    run, out = tmp_path / "run.toml", tmp_path / "base"
    run.write_text(f'out = "{out}"\ntexts = ["{records}"]\n[base]\n{shape}\n')
    result = CliRunner().invoke(init_base, [str(run), "--set", "base.seed=3"])
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out}\n"
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('out = "x"\ntexts = []', "texts: is empty"),
        ('out = "x"\ntexts = ["no.jsonl"]', r"no\.jsonl: can't be read"),
        ('out = "x"\ntexts = ["a"]\n[base]\nhiden = 3', "Did you mean 'hidden'"),
    ],
)
def test_a_bad_run_file(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(text)
    result = CliRunner().invoke(init_base, ["run.toml"])
    assert isinstance(result.exception, LiquidError)
    assert words.replace("\\", "") in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
