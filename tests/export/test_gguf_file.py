"""GGUF files read back by transformers, or by the gguf package for families it does not know.

benchmarks/engines.sh compares them with llama.cpp itself.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, LlamaConfig, Qwen2Config

import liquidmm.export.gguf_file as gguf_file
from liquidmm.errors import CheckpointError, ConfigError, MissingExtraError
from liquidmm.export.gguf_file import write_gguf
from liquidmm.export.gguf_model import (
    FAMILIES,
    ModelFile,
    check_family,
    interleave_halves,
    rope_factors,
)
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.model.expand import ExpandConfig, expand

gguf = pytest.importorskip("gguf")

# Families whose files transformers reads; the others are read by the gguf package.
READ = ("llama", "qwen2", "qwen2-tight", "qwen3", "gemma2", "gemma3")
TEXTS = ("a red apple 123, it's  two\n\n x", "Ünï ☃ 日本", "<boi><|im_start|>user", " lead")


@pytest.fixture(scope="module")
def expanded(family_base, tmp_path_factory):
    """Give an expanded tiny model of a family, in memory."""
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "checkpoint"
            made[family] = expand(family_base(family), folder, ExpandConfig(codebook_size=24))
        return made[family]

    return make


def read(path):
    """Name -> weight of a file, as torch reads it."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }, reader


@pytest.mark.parametrize("family", READ)
def test_gguf_model_read_by_transformers(family, expanded, tmp_path, monkeypatch):
    checkpoint = expanded(family)
    config = checkpoint.model.config
    if family.startswith("gemma"):  # the tiny ones keep the scale of large heads
        monkeypatch.setattr(config, "query_pre_attn_scalar", config.head_dim)
    write_gguf(checkpoint, tmp_path / "model.gguf", "float32")
    # transformers does not read the size of these families' heads.
    known = {"config": config} if family in ("qwen3", "gemma2", "gemma3") else {}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", **known)
    ours, theirs = checkpoint.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        # Gemma's norms are stored plus 1, which rounds.
        near = family.startswith("gemma") and name.endswith("norm.weight")
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=2**-23 if near else 0)
    assert model.config.tie_word_embeddings == config.tie_word_embeddings
    assert model.config.vocab_size == checkpoint.vocabulary.size
    if not family.startswith("gemma"):
        ids = torch.arange(20, 60)[None]
        with torch.no_grad():
            assert torch.equal(model(ids).logits, checkpoint.model(ids).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gguf_tokenizer_read_by_transformers(family, expanded, tmp_path):
    checkpoint = expanded(family)
    write_gguf(checkpoint, tmp_path / "model.gguf", "float32")
    tokenizer = checkpoint.processor.tokenizer
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=False) == tokenizer.encode(
            text, add_special_tokens=False
        )
    size = checkpoint.vocabulary.text_size
    assert again.convert_ids_to_tokens(range(size)) == tokenizer.convert_ids_to_tokens(range(size))
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token, again.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    code = checkpoint.vocabulary.image_offset + 5
    assert again.convert_ids_to_tokens(code) == "<|image_5|>"
    assert again.decode([code], skip_special_tokens=True) == ""


def test_gguf_gemma_read_by_gguf_package(expanded, tmp_path):
    checkpoint = expanded("gemma")
    write_gguf(checkpoint, tmp_path / "model.gguf", "float32")
    weights, reader = read(tmp_path / "model.gguf")
    state = checkpoint.model.state_dict()
    del state["lm_head.weight"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA, 2)
    assert len(weights) == len(state)
    for name, weight in state.items():
        added = 1 if name.endswith("norm.weight") else 0
        stored = weights[names.get_name(name, try_suffixes=(".weight",))]
        assert torch.equal(stored, weight + added), name

    def value(key):
        return reader.get_field(key).contents()

    assert value("general.architecture") == "gemma"
    assert value("gemma.attention.key_length") == 16
    assert value("tokenizer.ggml.add_space_prefix") is False
    assert value("liquid.boi") == checkpoint.vocabulary.boi == 7
    assert value("liquid.image_offset") == checkpoint.vocabulary.image_offset
    assert value("tokenizer.ggml.eot_token_id") == checkpoint.processor.sequences.end_of_turn
    assert value("tokenizer.chat_template") == checkpoint.processor.sequences.chat_template


@pytest.mark.parametrize(("dtype", "matrix"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_gguf_16_bit_weights_rounded_as_torch(checkpoint, tmp_path, dtype, matrix):
    write_gguf(checkpoint, tmp_path / "model.gguf", dtype)
    weights, reader = read(tmp_path / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert {kinds[name] for name in kinds if "norm" not in name} == {matrix}
    table = checkpoint.model.state_dict()["model.embed_tokens.weight"]
    rounded = table.to(getattr(torch, dtype)).float()
    assert torch.equal(weights["token_embd.weight"], rounded)


def test_gguf_q8_0_error_within_half_a_step(family_base, expanded, tmp_path):
    checkpoint = expanded("qwen2")
    with pytest.raises(CheckpointError, match=r"q8_0 .*32 weights.*got 48"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "q8_0")
    model = checkpoint.model
    name = "model.layers.0.self_attn.q_proj.weight"
    kind = gguf.GGMLQuantizationType.Q8_0
    weight = model.state_dict()[name]
    again = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
    step = weight.view(-1, 32).abs().amax(-1) / 127
    assert ((again - weight).view(-1, 32).abs() <= 0.51 * step[:, None]).all()


def test_gguf_weight_above_float16_raises(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "FLOAT16_MAX", 0.01)
    with pytest.raises(CheckpointError, match="token_embd.weight: .*float16.*bfloat16"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "float16")


def test_gguf_invalid_dtype_or_missing_package_raises(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"dtype: .*'q8'.*Did you mean 'q8_0'"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "q8")

    def missing(module, extra):
        raise MissingExtraError(f"{module} {extra}")

    monkeypatch.setattr(gguf_file, "require_extra", missing)
    with pytest.raises(MissingExtraError, match="gguf gguf"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "float32")


def test_interleave_halves_reorders_each_head():
    weight = torch.arange(8.0)[:, None]
    assert interleave_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rope_factors_of_llama3():
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=rope)
    factors = rope_factors(config)
    # Waves shorter than 64 / 4 stay, those longer than 64 are stretched by 8.
    waves = 2 * torch.pi * 10000.0 ** (torch.arange(0, 32, 2) / 32)
    assert torch.equal(factors[waves < 16], torch.ones(int((waves < 16).sum())))
    assert torch.allclose(factors[waves > 64], torch.tensor(8.0))
    between = factors[(waves > 16) & (waves < 64)]
    assert ((between > 1) & (between < 8)).all()
    assert rope_factors(LlamaConfig()) is None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_architecture_known_to_gguf(family):
    assert FAMILIES[family].architecture in gguf.MODEL_ARCH_NAMES.values()


def gemma2(**changes):
    fields = {"head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 4}
    return Gemma2Config(**fields | changes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlamaConfig(hidden_act="gelu"), "expected the activation silu, got gelu"),
        (LlamaConfig(attention_bias=True), "attention_bias is set"),
        (LlamaConfig(mlp_bias=True), "mlp_bias is set"),
        (
            LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
            "expected rope_type default or linear or llama3, got yarn",
        ),
        (
            Qwen2Config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "expected rope_type default or linear, got dynamic",
        ),
        (
            Qwen2Config(
                num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
            ),
            "expected layer_types",
        ),
        (gemma2(query_pre_attn_scalar=144), "expected query_pre_attn_scalar 256, got 144"),
        (gemma2(num_hidden_layers=46), "expected query_pre_attn_scalar 288, got 256"),
        (gemma2(layer_types=["full_attention"] * 4), "expected layer_types"),
    ],
)
def test_check_family_unsupported_config_raises(config, words):
    with pytest.raises(CheckpointError) as caught:
        check_family(config)
    assert words in str(caught.value)
    assert "Serve this model with vLLM" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("phi", "phi is not one of llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text"),
        ("mistral", "sliding_window is 64 in a context of 256"),
    ],
)
def test_model_file_unsupported_family_raises(family, words, expanded):
    with pytest.raises(CheckpointError, match=words):
        ModelFile(expanded(family).model)


def test_model_file_untied_gemma_raises(expanded, monkeypatch):
    model = expanded("gemma").model
    monkeypatch.setattr(model.config, "tie_word_embeddings", False)
    with pytest.raises(CheckpointError, match=r"gemma has no name for lm_head\.weight"):
        ModelFile(model)


def test_gguf_tokenizer_without_eos_raises(expanded, tmp_path, monkeypatch):
    checkpoint: Checkpoint = expanded("llama")
    monkeypatch.setattr(type(checkpoint.processor.sequences), "eos", None)
    with pytest.raises(CheckpointError, match="tokenizer: .*eos"):
        write_gguf(checkpoint, tmp_path / "model.gguf", "float32")
