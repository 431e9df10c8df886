"""Expansion of real tiny models of every family."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from liquidmm.errors import CheckpointError, ConfigError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.vocabulary import SPECIAL_TOKENS

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen2-tight",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "olmo2",
)
# Special tokens and offset relative to the number of old tokens N and old rows R.
PLACES = {
    "llama": lambda n, r: ([3, 4, 5], r),
    "mistral": lambda n, r: ([n, n + 1, n + 2], r + 3),
    "qwen2": lambda n, r: ([n, n + 1, n + 2], r),
    "qwen2-tight": lambda n, r: ([n, n + 1, n + 2], r + 2),
    "qwen3": lambda n, r: ([n, n + 1, n + 2], r),
    "gemma": lambda n, r: ([7, 8, 9], r),
    "gemma2": lambda n, r: ([7, 8, 9], r),
    "gemma3": lambda n, r: ([7, 8, 9], r),
    "phi": lambda n, r: ([n, n + 1, n + 2], r),
    "phi3": lambda n, r: ([4, 5, 6], r),
    "olmo2": lambda n, r: ([n, n + 1, n + 2], r + 3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_model_keeps_logits_of_base(family, family_base, tmp_path):
    base = family_base(family)
    out = tmp_path / "out"
    written = expand(base, out, ExpandConfig(codebook_size=24))

    old = AutoModelForCausalLM.from_pretrained(base).eval()
    new = AutoModelForCausalLM.from_pretrained(out).eval()
    before, tokenizer = (AutoTokenizer.from_pretrained(folder) for folder in (base, out))
    rows, layout = old.config.vocab_size, written.vocabulary

    special_ids, offset = PLACES[family](len(before), rows)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == special_ids
    assert [layout.boi, layout.eoi, layout.unconditional] == special_ids
    assert (layout.image_offset, layout.size) == (offset, offset + 24)
    assert set(special_ids) <= set(tokenizer.all_special_ids)
    assert tokenizer.encode("<boi><eoi><unconditional>", add_special_tokens=False) == special_ids
    assert tokenizer.encode("a red apple") == before.encode("a red apple")
    assert tokenizer.chat_template == before.chat_template
    assert type(new) is type(old)
    assert type(tokenizer) is type(before)

    ids = torch.randint(0, len(before), (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = new(input_ids=ids).logits
        difference = (logits[..., :rows] - old(input_ids=ids).logits).abs().max()
    assert difference < 1e-5
    assert logits.shape[-1] == new.config.vocab_size == layout.size

    table, head = new.get_input_embeddings().weight, new.get_output_embeddings()
    assert (head.weight is table) == old.config.tie_word_embeddings
    mean = old.get_input_embeddings().weight[: len(before)].mean(0)
    torch.testing.assert_close(table[rows:], mean.expand(layout.size - rows, -1))
    if head.bias is not None:
        expected = old.get_output_embeddings().bias[: len(before)].mean()
        torch.testing.assert_close(head.bias[rows:], expected.expand(layout.size - rows))

    again = Checkpoint.load(out, device="cpu")
    assert again.vocabulary == layout
    again.save(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()
    assert Checkpoint.load(tmp_path / "again").vocabulary == layout


def test_default_codebook_size_is_8192(base_folder, tmp_path):
    layout = expand(base_folder, tmp_path / "out").vocabulary
    assert layout.codebook_size == 8192
    assert [layout.boi, layout.eoi, layout.unconditional] == [5, 6, 7]


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_normal_init_matches_mean_and_covariance(family, family_base, tmp_path):
    config = ExpandConfig(codebook_size=20000, init="normal", seed=1)
    written = expand(family_base(family), tmp_path / "a", config)
    again = expand(family_base(family), tmp_path / "b", config)
    head = written.model.get_output_embeddings().weight
    for table in (written.model.get_input_embeddings().weight, head):
        old = table[: written.vocabulary.image_offset - 3 * (family == "mistral")]
        new = table[written.vocabulary.image_slice]
        torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.02, rtol=0)
        torch.testing.assert_close(new.T.cov(), old.T.cov(correction=0), atol=0.02, rtol=0)
    assert torch.equal(head, again.model.get_output_embeddings().weight)


def test_codebook_init_keeps_geometry_of_codes(
    base_folder, image_tokenizer_folder, image_tokenizer, tmp_path
):
    config = ExpandConfig(init="codebook", image_tokenizer=image_tokenizer_folder)
    written = expand(base_folder, tmp_path / "out", config)
    table = written.model.get_input_embeddings().weight.detach()
    new = table[written.vocabulary.image_slice]
    vectors = image_tokenizer.model.quantize.embedding.weight
    apart, expected = (torch.pdist(rows.float()) for rows in (new, vectors))
    assert torch.corrcoef(torch.stack([apart, expected]))[0, 1] > 0.8
    ratio = new.std() / table[: written.vocabulary.image_offset].std()
    assert 0.5 < ratio < 2
    assert (written.image_tokenizer.codebook_size, written.vocabulary.codebook_size) == (16, 16)


def test_reserved_token_in_use_is_not_renamed(family_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(family_base("llama"), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    tokenizer.save_pretrained(base)
    layout = expand(base, tmp_path / "out", ExpandConfig(codebook_size=4)).vocabulary
    assert [layout.boi, layout.eoi, layout.unconditional] == [4, 5, 6]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 3


def test_expand_saves_chosen_dtype(base_folder, tmp_path):
    expand(base_folder, tmp_path / "out", ExpandConfig(codebook_size=4, dtype="bfloat16"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert table.weight is head.weight


def _bert(folder, checkpoint_folder):
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertForMaskedLM(config).save_pretrained(folder)


def _t5(folder, checkpoint_folder):
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def _unknown(folder, checkpoint_folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "quux"}')


def _expanded(folder, checkpoint_folder):
    shutil.copytree(checkpoint_folder, folder)


def _published(folder, checkpoint_folder):
    shutil.copytree(checkpoint_folder, folder)
    (folder / "processor_config.json").unlink()


def _no_tokenizer(folder, checkpoint_folder):
    shutil.copytree(checkpoint_folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()


def _no_weights(folder, checkpoint_folder):
    _no_special_tokens(folder, checkpoint_folder)
    (folder / "model.safetensors").unlink()


def _broken_weights(folder, checkpoint_folder):
    _no_special_tokens(folder, checkpoint_folder)
    (folder / "model.safetensors").write_bytes(b"nonsense" * 4)


def _no_special_tokens(folder, checkpoint_folder):
    shutil.copytree(checkpoint_folder, folder)
    (folder / "processor_config.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for index, token in enumerate(SPECIAL_TOKENS):
            text = text.replace(token, f"<|reserved_{index}|>")
        (folder / name).write_text(text)


def _nothing(folder, checkpoint_folder):
    pass


def _empty(folder, checkpoint_folder):
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_bert, "BertForMaskedLM"),
        (_t5, "T5ForConditionalGeneration"),
        (_unknown, "model type 'quux'"),
        (_nothing, "no such folder"),
        (_empty, "no config.json"),
        (_expanded, "already a Liquid checkpoint"),
        (_published, "<boi>.*already expanded"),
        (_no_tokenizer, "no tokenizer"),
        (_no_weights, "weights cannot be read"),
        (_broken_weights, "weights cannot be read"),
    ],
)
def test_bad_base_is_one_line_error(make, words, checkpoint_folder, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    make(base, checkpoint_folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        expand(base, out, ExpandConfig(codebook_size=4))
    assert "\n" not in str(caught.value)
    assert str(base) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path != base] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codebook_size": 0}, "codebook_size.*at least 1.*0"),
        ({"init": "means"}, "Did you mean 'mean'"),
        ({"init": "codebook"}, "init.*image_tokenizer"),
        ({"init_std": -1.0}, "init_std.*at least 0.*-1.0"),
    ],
)
def test_bad_option_names_field_and_value(options, words):
    with pytest.raises(ConfigError, match=words):
        ExpandConfig(**options)


def test_image_tokenizer_with_other_codebook_is_rejected(
    base_folder, image_tokenizer_folder, tmp_path
):
    config = ExpandConfig(codebook_size=17, image_tokenizer=image_tokenizer_folder)
    with pytest.raises(CheckpointError, match="image tokenizer.*17.*16"):
        expand(base_folder, tmp_path / "out", config)


def test_occupied_folder_is_kept(base_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(LiquidError, match="exists"):
        expand(base_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.gguf: no such file"):
        expand(tmp_path / "x.gguf", tmp_path / "out")
