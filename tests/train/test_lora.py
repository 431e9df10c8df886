"""Adapters and new rows: what changes, what stays, and the final model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from liquidmm.config import from_dict
from liquidmm.errors import ConfigError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.train.config import TrainConfig
from liquidmm.train.distributed import Distributed, ParallelConfig
from liquidmm.train.lora import LoraConfig, add_adapters, effective_weight, merge_adapters
from liquidmm.train.loss import LossConfig
from liquidmm.train.model import ModelConfig, load_for_training
from liquidmm.train.optim import split_parameters
from liquidmm.train.setup import open_setup
from liquidmm.train.trainer import train

FAMILIES = ["llama", "qwen2", "gemma2"]  # an untied head, two tied ones


@pytest.fixture(params=[*FAMILIES, "llama in 4 bits"])
def adapted_run(plan, request, family_base, image_tokenizer_folder, tmp_path):
    """A finished training with adapters, and the folder it started from."""
    family, _, in_bits = request.param.partition(" in ")
    folder = tmp_path / "base-liquid"
    config = ExpandConfig(image_tokenizer=image_tokenizer_folder, sizes=((16, 16),))
    expand(family_base(family), folder, config)
    plan["data"]["seq_len"] = 128
    lora = {"rank": 4, "load_in_4bit": bool(in_bits)}
    plan |= {"checkpoint": str(folder), "model": {"lora": lora}, "save_dtype": "float32"}
    run = from_dict(TrainConfig, plan, "run.toml")
    train(run)
    return run


def test_only_new_rows_and_adapted_layers_change(adapted_run):
    before = load_file(adapted_run.checkpoint / "model.safetensors")
    after = load_file(adapted_run.out / "final" / "model.safetensors")
    assert before.keys() == after.keys()
    vocabulary = Checkpoint.load(adapted_run.checkpoint, "cpu").vocabulary
    new = torch.zeros(vocabulary.size, dtype=torch.bool)
    new[vocabulary.image_slice] = True
    new[[vocabulary.boi, vocabulary.eoi, vocabulary.unconditional]] = True
    tables = [name for name in before if "embed_tokens" in name or "lm_head" in name]
    for name in tables:
        moved = (before[name] != after[name]).any(dim=1)
        # In an untied table, rows of tokens that do not occur in the run have no gradient.
        assert moved[new].all() or ("embed" in name and moved[new].float().mean() > 0.7), name
        assert not moved[~new].any(), name
    for name in before.keys() - set(tables):
        assert torch.equal(before[name], after[name]) != name.endswith("_proj.weight"), name


def test_final_model_is_a_stock_model(adapted_run):
    final = adapted_run.out / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    assert not any("lora" in name for name in model.state_dict())
    tied = model.config.tie_word_embeddings
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied
    Checkpoint.load(final, "cpu")


def test_merging_does_not_change_logits(checkpoint_folder):
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu")
    add_adapters(checkpoint.model, checkpoint.vocabulary, LoraConfig(rank=3))
    ids = torch.randint(0, checkpoint.vocabulary.size, (2, 11))
    with torch.no_grad():
        torch.manual_seed(0)
        named = dict(checkpoint.model.named_parameters())
        trained = {name: value for name, value in named.items() if value.requires_grad}
        for value in trained.values():
            value.add_(0.1 * torch.randn_like(value))
        expected = checkpoint.model(ids).logits
        other = Checkpoint.load(checkpoint_folder, "cpu")
        fresh = add_adapters(other.model, other.vocabulary, LoraConfig(rank=3))
        merged = merge_adapters(fresh, trained)
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=0)


def test_new_rows_are_separate_parameters(checkpoint_folder):
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu")
    model, vocabulary = checkpoint.model, checkpoint.vocabulary
    before = model.get_input_embeddings().weight.detach().clone()
    assert effective_weight(model.get_input_embeddings()) is model.get_input_embeddings().weight
    add_adapters(model, vocabulary, LoraConfig())
    assert torch.equal(effective_weight(model.get_input_embeddings()), before)
    decayed, plain = split_parameters(model)
    names = {id(value): name for name, value in model.named_parameters()}
    assert all("lora_" in names[id(value)] for value in decayed)
    assert [names[id(value)] for value in plain] == [
        "model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    ]
    assert plain[0].shape[0] == vocabulary.codebook_size + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank.*1.*0"),
        ({"alpha": 0.0}, "alpha.*0"),
        ({"dropout": 1.0}, "dropout.*1"),
    ],
)
def test_lora_config_out_of_range_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_unknown_target_module_rejected(checkpoint_folder):
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu")
    config = LoraConfig(target_modules=("q_proj", "qkv"))
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*'qkv'.*down_proj"):
        add_adapters(checkpoint.model, checkpoint.vocabulary, config)


def test_evaluation_does_not_change_four_bit_weights(checkpoint_folder, checkpoint):
    config = ModelConfig(lora=LoraConfig(rank=3, load_in_4bit=True))
    trainee = load_for_training(
        checkpoint_folder,
        checkpoint.vocabulary,
        config,
        LossConfig(),
        world=Distributed("cpu"),
        parallel=ParallelConfig(),
        precision=torch.float32,
    )
    packed = {
        name: weight.detach().clone()
        for name, weight in trainee.model.named_parameters()
        if weight.dtype == torch.uint8
    }
    assert len(packed) == 2 * 7  # every linear layer of two blocks
    ids = torch.arange(12)[None]
    outputs = []
    for training in (True, False, True):
        trainee.train(training)
        with torch.no_grad():
            outputs.append(trainee.model(input_ids=ids, use_cache=False).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    # 4 bits are close to the weights, and not the same.
    with torch.no_grad():
        exact = checkpoint.model(input_ids=ids, use_cache=False).logits
    assert 0 < (outputs[0] - exact).abs().max() < 0.2 * exact.abs().max()
    for name, weight in trainee.model.named_parameters():
        assert name not in packed or torch.equal(packed[name], weight)


def test_four_bit_weights_on_several_ranks_rejected(plan):
    plan["model"] = {"lora": {"load_in_4bit": True}}
    with pytest.raises(ConfigError, match=r"lora\.load_in_4bit.*2"):
        open_setup(from_dict(TrainConfig, plan, "run.toml"), 2, torch.device("cpu"))
