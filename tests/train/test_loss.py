from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from liquidmm.data.examples import IGNORE
from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.train.loss import (
    Head,
    LossConfig,
    head_of,
    next_token_loss,
    targets,
)

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "sdpa",
}


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)).eval()


def gemma2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = SHAPE | {"attn_implementation": "eager"}
    config = Gemma2Config(**shape, head_dim=8, final_logit_softcapping=0.2)
    return Gemma2ForCausalLM(config).eval()


def cohere() -> PreTrainedModel:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)).eval()


def naive(hidden, head, target, max_z_loss, z_loss):
    logits = functional.linear(hidden, head.weight) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    kept = logits[target != IGNORE]
    loss = functional.cross_entropy(kept, target[target != IGNORE])
    loss = loss + max_z_loss * kept.amax(-1).square().mean()
    return loss + z_loss * kept.logsumexp(-1).square().mean()


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randint(0, 11, (3, 7), generator=generator)
    target[torch.rand(3, 7, generator=generator) < 0.4] = IGNORE
    task_ids = torch.randint(0, 2, (3, 7), generator=generator)
    return hidden, weight, target, task_ids


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("max_z_loss", "z_loss"), [(0, 0), (0.3, 0), (0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("chunk_logits", [1, 33, 10**6])
def test_equals_full_logits(softcap, scale, max_z_loss, z_loss, chunk_logits):
    hidden, weight, target, task_ids = problem()
    head = Head(weight=weight, scale=scale, softcap=softcap)
    config = LossConfig(max_z_loss=max_z_loss, z_loss=z_loss, chunk_logits=chunk_logits)
    result = next_token_loss(hidden, head, target, task_ids, config, tasks=2)
    expected = naive(hidden, head, target, max_z_loss, z_loss)
    torch.testing.assert_close(result.loss, expected, atol=1e-10, rtol=0)
    ours = torch.autograd.grad(3 * result.loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_parts_of_a_step_add_up():
    hidden, weight, target, task_ids = problem()
    head, config = Head(weight=weight), LossConfig(max_z_loss=0.1)
    labels = int((target != IGNORE).sum())
    whole = next_token_loss(hidden, head, target, task_ids, config, tasks=2)
    parts = [
        next_token_loss(
            hidden[row], head, target[row], task_ids[row], config, tasks=2, denominator=labels
        )
        for row in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts[0].nll + parts[1].nll, whole.nll)


def test_counts_for_each_task():
    hidden, weight, target, task_ids = problem()
    config = LossConfig(max_z_loss=0.5)
    result = next_token_loss(hidden, Head(weight=weight), target, task_ids, config, tasks=3)
    logits = functional.linear(hidden, weight).detach()
    for task in range(3):
        chosen = (target != IGNORE) & (task_ids == task)
        assert result.counts[task] == chosen.sum()
        assert result.correct[task] == (logits.argmax(-1) == target)[chosen].sum()
        nll = functional.cross_entropy(logits[chosen], target[chosen], reduction="sum")
        torch.testing.assert_close(result.nll[task], nll.float())


def test_no_labels_is_zero():
    hidden, weight, target, task_ids = problem()
    target.fill_(IGNORE)
    result = next_token_loss(
        hidden, Head(weight=weight), target, task_ids, LossConfig(max_z_loss=1), tasks=2
    )
    result.loss.backward()
    assert result.loss == 0
    assert weight.grad.abs().sum() == 0
    assert hidden.grad.abs().sum() == 0


def test_frozen_head_and_no_gradient():
    hidden, weight, target, task_ids = problem()
    head = Head(weight=weight.detach())
    result = next_token_loss(hidden, head, target, task_ids, LossConfig(), tasks=2)
    result.loss.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        again = next_token_loss(hidden, head, target, task_ids, LossConfig(), tasks=2)
    assert again.loss == result.loss


def test_autocast_is_close():
    hidden, weight, target, task_ids = problem(torch.float32)
    head, config = Head(weight=weight), LossConfig(max_z_loss=0.01)
    exact = next_token_loss(hidden, head, target, task_ids, config, tasks=2)
    with torch.autocast("cpu", torch.bfloat16):
        rough = next_token_loss(hidden, head, target, task_ids, config, tasks=2)
    assert rough.loss.dtype == torch.float32
    torch.testing.assert_close(rough.loss, exact.loss, atol=0.05, rtol=0)
    (gradient,) = torch.autograd.grad(rough.loss, weight)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(
        gradient, torch.autograd.grad(exact.loss, weight)[0], atol=0.02, rtol=0
    )


def test_targets_end_with_their_document():
    labels = torch.tensor([[1, 2, 3, IGNORE, 5, 6]])
    position_ids = torch.tensor([[0, 1, 0, 1, 2, 3]])
    assert targets(labels, position_ids).tolist() == [[2, IGNORE, IGNORE, 5, 6, IGNORE]]


@pytest.mark.parametrize("build", [llama, qwen2, gemma, gemma2, cohere])
def test_equals_the_models_own_loss(build):
    model = build()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :4] = IGNORE
    position_ids = torch.arange(9).expand(2, 9)
    hidden = model.base_model(
        input_ids=ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    result = next_token_loss(
        hidden,
        head_of(model),
        targets(labels, position_ids),
        torch.zeros_like(ids),
        LossConfig(chunk_logits=100),
        tasks=1,
    )
    expected = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(result.loss, expected, atol=1e-5, rtol=0)


def test_a_head_with_a_bias_is_refused():
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    with pytest.raises(CheckpointError, match="no plain matrix"):
        head_of(PhiForCausalLM(PhiConfig(**shape)))


@pytest.mark.parametrize(
    "wrong", [{"max_z_loss": -1}, {"z_loss": float("nan")}, {"chunk_logits": -1}]
)
def test_bad_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LossConfig(**wrong)
