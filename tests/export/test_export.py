import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquidmm.errors import CheckpointError, ConfigError, LiquidError
from liquidmm.export.export import export_checkpoint
from liquidmm.export.vllm_client import VLLMClient
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.model.expand import ExpandConfig, expand


def test_export_vllm_writes_stock_folder(checkpoint, checkpoint_folder, tmp_path, engine):
    out = tmp_path / "made" / "out"
    assert export_checkpoint(checkpoint_folder, out, "vllm") == out
    model, tokenizer = (kind.from_pretrained(out) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ours = checkpoint.model.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in model.state_dict().items())
    assert tokenizer.get_vocab() == checkpoint.processor.tokenizer.get_vocab()
    assert tokenizer.chat_template == checkpoint.processor.tokenizer.chat_template
    defaults = json.loads((out / "generation_config.json").read_text())
    sequences = checkpoint.processor.sequences
    assert defaults["eos_token_id"] == sorted([sequences.eos, sequences.end_of_turn])
    sampling = {key: defaults[key] for key in ("do_sample", "temperature", "top_k", "top_p")}
    assert sampling == {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
    layout = json.loads((out / "processor_config.json").read_text())["vocabulary"]
    assert layout == checkpoint.vocabulary.to_dict()
    # The folder has everything that a client needs.
    assert VLLMClient.load(out, engine).generate_image("a red apple").size == (16, 16)


def test_export_dtype_converts_weights(checkpoint, checkpoint_folder, tmp_path):
    export_checkpoint(checkpoint_folder, tmp_path / "half", "vllm", "bfloat16")
    again = Checkpoint.load(tmp_path / "half", device="cpu", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, checkpoint.model.state_dict()[name].bfloat16())


def test_export_gguf_writes_model_and_processor(checkpoint, checkpoint_folder, tmp_path):
    pytest.importorskip("gguf")
    out = export_checkpoint(checkpoint_folder, tmp_path / "out", "gguf")
    assert not list(out.glob("*.safetensors"))
    assert (out / "image_tokenizer" / "model.safetensors").is_file()
    assert (out / "processor_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf")
    ours = checkpoint.model.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in model.state_dict().items())


def test_export_vllm_keeps_sampling_of_base(checkpoint_folder, tmp_path):
    source = shutil.copytree(checkpoint_folder, tmp_path / "source")
    path = source / "generation_config.json"
    given = json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.3, "top_k": 7}
    path.write_text(json.dumps(given))
    export_checkpoint(source, tmp_path / "out", "vllm")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (kept["temperature"], kept["top_k"]) == (0.3, 7)
    assert "top_p" not in kept


def test_export_vllm_adds_missing_chat_template(family_base, tmp_path):
    expand(family_base("gemma"), tmp_path / "source", ExpandConfig(codebook_size=8))
    (tmp_path / "source" / "chat_template.jinja").unlink()
    export_checkpoint(tmp_path / "source", tmp_path / "out", "vllm")
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert "<start_of_turn>" in template


def test_export_vllm_unsupported_model_raises(family_base, tmp_path, monkeypatch):
    expand(family_base("olmo2"), tmp_path / "source", ExpandConfig(codebook_size=8))
    export_checkpoint(tmp_path / "source", tmp_path / "out", "vllm")
    kind = type(Checkpoint.load(tmp_path / "out", device="cpu").model)
    monkeypatch.setattr(kind, "is_backend_compatible", classmethod(lambda cls: False))
    with pytest.raises(CheckpointError, match="model: .*Olmo2ForCausalLM"):
        export_checkpoint(tmp_path / "source", tmp_path / "other", "vllm")
    monkeypatch.setattr("liquidmm.export.export.VLLM_MODELS", ("Olmo2ForCausalLM",))
    export_checkpoint(tmp_path / "source", tmp_path / "other", "vllm")


def without(folder, *names):
    for name in names:
        (folder / name).unlink()


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: without(f, "tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
        (lambda f: without(f, "model.safetensors"), "weights cannot be read"),
        (lambda f: without(f, "processor_config.json"), "processor_config.json is missing"),
        (lambda f: changed(f, model_type="martian"), "model type 'martian'"),
        (lambda f: changed(f, dtype="float64"), "dtype 'float64'"),
        (lambda f: changed(f, vocab_size=100), "got 100"),
    ],
)
@pytest.mark.parametrize("target", ["vllm", "gguf"])
def test_export_broken_checkpoint_raises(checkpoint_folder, tmp_path, target, change, words):
    source = shutil.copytree(checkpoint_folder, tmp_path / "source")
    change(source)
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(source, tmp_path / "out", target)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("target", "dtype", "words"),
    [
        ("vlm", None, r"--format: .*'vlm'.*Did you mean 'vllm'"),
        ("vllm", "q8_0", r"--dtype: .* for vllm, got 'q8_0'"),
        ("gguf", "int4", r"--dtype: .*q8_0 for gguf, got 'int4'"),
        ("vllm", "auto", r"--dtype: .* for vllm, got 'auto'"),
    ],
)
def test_export_invalid_option_raises(checkpoint_folder, tmp_path, target, dtype, words):
    with pytest.raises(ConfigError, match=words):
        export_checkpoint(checkpoint_folder, tmp_path / "out", target, dtype)


def test_export_existing_folder_unchanged(checkpoint_folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(LiquidError, match="exists already"):
        export_checkpoint(checkpoint_folder, tmp_path, "vllm")
    assert (tmp_path / "mine").read_text() == "mine"


def test_export_gguf_unsupported_family_leaves_no_files(family_base, tmp_path):
    expand(family_base("phi"), tmp_path / "source", ExpandConfig(codebook_size=8))
    with pytest.raises(CheckpointError, match="llama.cpp: model type phi"):
        export_checkpoint(tmp_path / "source", tmp_path / "out", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
