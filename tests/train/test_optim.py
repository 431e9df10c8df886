from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from liquidmm.errors import ConfigError
from liquidmm.train.optim import OptimConfig, build_optimizers, learning_rate, split_parameters


def tiny(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=19,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def test_cosine_schedule_values():
    config = OptimConfig(lr=1.0, warmup_steps=2, min_lr_ratio=0.2)
    rates = [learning_rate(step, 6, config) for step in range(7)]
    middle = 0.2 + 0.8 / 2
    quarter = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    last = 0.2 + 0.8 * (1 + math.cos(3 * math.pi / 4)) / 2
    assert rates == pytest.approx([0.5, 1.0, 1.0, quarter, middle, last, 0.2])


def test_constant_schedule_values():
    config = OptimConfig(lr=2.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(step, 9, config) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_of_blocks_and_head_decay(tied):
    model = tiny(tied)
    names = {id(value): name for name, value in model.named_parameters()}
    decayed, undecayed = ({names[id(value)] for value in part} for part in split_parameters(model))
    assert all("proj" in name or name == "lm_head.weight" for name in decayed)
    assert len(decayed) == (7 if tied else 8)
    assert "model.embed_tokens.weight" in undecayed
    assert len(decayed) + len(undecayed) == len(names)


def test_frozen_parameters_not_optimized():
    model = tiny(True)
    model.model.embed_tokens.weight.requires_grad_(False)
    (optimizer,) = build_optimizers(model, OptimConfig(lr=1e-3))
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert id(model.model.embed_tokens.weight) not in held


def test_first_adamw_step_is_sign_descent():
    model = tiny(True)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    (optimizer,) = build_optimizers(model, OptimConfig(lr=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -2.0)
    optimizer.step()
    torch.testing.assert_close(weight, before + 1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_updates_blocks_and_adamw_the_rest(tied):
    model = tiny(tied)
    muon, adamw = build_optimizers(model, OptimConfig(lr=1e-3, optimizer="muon"))
    names = {id(value): name for name, value in model.named_parameters()}
    parts = [
        {names[id(value)] for group in each.param_groups for value in group["params"]}
        for each in (muon, adamw)
    ]
    assert parts[0] == {name for name in names.values() if "proj" in name}
    assert parts[0] | parts[1] == set(names.values())
    assert not parts[0] & parts[1]


def test_muon_updates_are_orthogonal_with_adamw_size():
    model = tiny(True)
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    muon, _ = build_optimizers(model, OptimConfig(lr=1e-3, optimizer="muon"))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    values = torch.linalg.svdvals((weight.detach() - before).double())
    # All singular values are near one; Newton-Schulz in bfloat16 leaves them in 0.7 to 1.2.
    expected = 1e-3 * 0.2 * math.sqrt(max(weight.shape))
    assert values.min() > 0.5 * expected
    assert values.max() < 1.3 * expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": math.inf},
        {"warmup_steps": -1},
        {"grad_clip": -0.5},
        {"max_z_loss": -1.0},
        {"min_lr_ratio": 2.0},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
    ],
)
def test_optim_config_out_of_range_rejected(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimConfig(**wrong)
