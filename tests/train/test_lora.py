"""Adapters beside new rows: what moves, what stays, and what comes out."""

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
from liquidmm.train.lora import LoraConfig, add_adapters, merge, weight_of
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


def test_new_rows_and_adapted_layers_move_and_nothing_else(adapted_run):
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
        # In an untied table, what the few rows of the run don't show has no gradient.
        assert moved[new].all() or ("embed" in name and moved[new].float().mean() > 0.7), name
        assert not moved[~new].any(), name
    for name in before.keys() - set(tables):
        assert torch.equal(before[name], after[name]) != name.endswith("_proj.weight"), name


def test_what_comes_out_is_a_stock_model(adapted_run):
    final = adapted_run.out / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    assert not any("lora" in name for name in model.state_dict())
    tied = model.config.tie_word_embeddings
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied
    Checkpoint.load(final, "cpu")


def test_merging_changes_no_output(checkpoint_folder):
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
        merged = merge(fresh, trained)
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=0)


def test_the_rows_that_are_trained_apart(checkpoint_folder):
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu")
    model, vocabulary = checkpoint.model, checkpoint.vocabulary
    before = model.get_input_embeddings().weight.detach().clone()
    assert weight_of(model.get_input_embeddings()) is model.get_input_embeddings().weight
    add_adapters(model, vocabulary, LoraConfig())
    assert torch.equal(weight_of(model.get_input_embeddings()), before)
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
        ({"rank": 0}, "rank: must be at least 1"),
        ({"alpha": 0.0}, "alpha: must be above 0"),
        ({"dropout": 1.0}, "dropout: must be from 0 to below 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_an_unknown_target(checkpoint_folder):
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu")
    config = LoraConfig(target_modules=("q_proj", "qkv"))
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*'qkv'.*There are: down_proj"):
        add_adapters(checkpoint.model, checkpoint.vocabulary, config)


def test_validating_leaves_weights_in_four_bits_alone(checkpoint_folder, checkpoint):
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


def test_four_bits_on_several_ranks(plan):
    plan["model"] = {"lora": {"load_in_4bit": True}}
    with pytest.raises(ConfigError, match=r"lora\.load_in_4bit: works on one rank, this run has 2"):
        open_setup(from_dict(TrainConfig, plan, "run.toml"), 2, torch.device("cpu"))
