"""The base model created from texts: shape, determinism, tokenizer and bad input."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from liquidmm import prompts
from liquidmm.errors import ConfigError, DataError
from liquidmm.model.init_model import InitConfig, build_model, create_base_model, read_texts

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SHAPE = InitConfig(**SMALL, intermediate_size=24, max_position_embeddings=64)


def test_base_is_a_stock_llama(base_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    assert type(model) is LlamaForCausalLM
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert model.config.vocab_size == len(tokenizer) == 360
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 1)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 256
    assert tokenizer.chat_template == prompts.CHATML_TEMPLATE


def test_tokenizer_round_trips_any_text(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    for text in ("don't , 120 cats .", "naïve 東京 🐱\n\ttab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4


def test_same_texts_and_seed_give_same_bytes(texts, tmp_path):
    state = torch.get_rng_state()
    folders = [create_base_model(texts, tmp_path / name, SHAPE) for name in "ab"]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in pairwise(folders):
        for path in one.iterdir():
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_seed_changes_weights_but_not_their_std(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    big = {**SMALL, "hidden_size": 128, "num_key_value_heads": 2}
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


def test_default_shape_has_11_million_parameters(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    shape = InitConfig()
    model = build_model(shape, tokenizer)
    body = sum(p.numel() for p in model.parameters()) - len(tokenizer) * shape.hidden_size
    assert 10.8e6 < body + 4096 * shape.hidden_size < 11.5e6


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_empty_texts_are_rejected(texts, tmp_path):
    with pytest.raises(DataError, match="texts.*none"):
        create_base_model(texts, tmp_path / "out", SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 100}, "vocab_size.*264.*100"),
        ({"num_hidden_layers": 0}, "num_hidden_layers.*at least 1.*0"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 .*hidden_size 320"),
        ({"num_key_value_heads": 2, "num_attention_heads": 5}, "num_key_value_heads 2"),
    ],
)
def test_invalid_shape_names_field(change, words):
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


def test_read_texts_of_every_record_kind(records):
    assert list(read_texts(records)) == ["plain", "one", "two", "three", "four", "What?"]


@pytest.mark.parametrize(
    ("line", "words"), [("{", ":6: invalid JSON"), ("[1]", ":6: expected a JSON object")]
)
def test_bad_line_is_named(records, line, words):
    records.write_text(records.read_text().rstrip() + "\n" + line)
    with pytest.raises(DataError, match=words):
        list(read_texts(records))


def test_missing_texts_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read"):
        list(read_texts(tmp_path / "no.jsonl"))
