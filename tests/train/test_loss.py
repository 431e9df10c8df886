from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.errors import ConfigError
from liquidmm.train.loss import Head, LossConfig, next_token_loss


def naive(hidden, head, target, max_z_loss, z_loss):
    logits = functional.linear(hidden, head.weight) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    kept = logits[target != IGNORE_INDEX]
    loss = functional.cross_entropy(kept, target[target != IGNORE_INDEX])
    loss = loss + max_z_loss * kept.amax(-1).square().mean()
    return loss + z_loss * kept.logsumexp(-1).square().mean()


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randint(0, 11, (3, 7), generator=generator)
    target[torch.rand(3, 7, generator=generator) < 0.4] = IGNORE_INDEX
    task_ids = torch.randint(0, 2, (3, 7), generator=generator)
    return hidden, weight, target, task_ids


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("max_z_loss", "z_loss"), [(0, 0), (0.3, 0), (0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("chunk_logits", [1, 33, 10**6])
def test_loss_and_gradients_equal_full_logits(softcap, scale, max_z_loss, z_loss, chunk_logits):
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


def test_losses_of_micro_batches_add_up():
    hidden, weight, target, task_ids = problem()
    head, config = Head(weight=weight), LossConfig(max_z_loss=0.1)
    num_targets = int((target != IGNORE_INDEX).sum())
    complete = next_token_loss(hidden, head, target, task_ids, config, tasks=2)
    parts = [
        next_token_loss(
            hidden[row], head, target[row], task_ids[row], config, tasks=2, num_targets=num_targets
        )
        for row in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), complete.loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts[0].nll + parts[1].nll, complete.nll)


def test_counts_per_task_equal_full_logits():
    hidden, weight, target, task_ids = problem()
    config = LossConfig(max_z_loss=0.5)
    result = next_token_loss(hidden, Head(weight=weight), target, task_ids, config, tasks=3)
    logits = functional.linear(hidden, weight).detach()
    for task in range(3):
        chosen = (target != IGNORE_INDEX) & (task_ids == task)
        assert result.counts[task] == chosen.sum()
        assert result.correct[task] == (logits.argmax(-1) == target)[chosen].sum()
        nll = functional.cross_entropy(logits[chosen], target[chosen], reduction="sum")
        torch.testing.assert_close(result.nll[task], nll.float())


def test_loss_without_targets_is_zero():
    hidden, weight, target, task_ids = problem()
    target.fill_(IGNORE_INDEX)
    result = next_token_loss(
        hidden, Head(weight=weight), target, task_ids, LossConfig(max_z_loss=1), tasks=2
    )
    result.loss.backward()
    assert result.loss == 0
    assert weight.grad.abs().sum() == 0
    assert hidden.grad.abs().sum() == 0


def test_frozen_head_gives_gradient_of_hidden_states_only():
    hidden, weight, target, task_ids = problem()
    head = Head(weight=weight.detach())
    result = next_token_loss(hidden, head, target, task_ids, LossConfig(), tasks=2)
    result.loss.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        again = next_token_loss(hidden, head, target, task_ids, LossConfig(), tasks=2)
    assert again.loss == result.loss


def test_autocast_loss_close_to_float32():
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


@pytest.mark.parametrize(
    "wrong", [{"max_z_loss": -1}, {"z_loss": float("nan")}, {"chunk_logits": -1}]
)
def test_loss_config_out_of_range_rejected(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LossConfig(**wrong)
