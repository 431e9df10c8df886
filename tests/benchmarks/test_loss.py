"""The methods of the loss agree, and their measurement reports how it was made."""

import pytest
import torch

from _loss import METHODS, LossBenchmark, LossSizes, has_operator
from _results import Result

SIZES = LossSizes(tokens=16, timed_tokens=8, vocabulary=50, hidden=6)


def benchmark(**options):
    return LossBenchmark(
        result=Result(bench="train"), sizes=SIZES, device="cpu", seconds=5.0, **options
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ours"])
def test_loss_methods_agree(name):
    if name == "torch" and not has_operator():
        pytest.skip("PyTorch before 2.13")
    source = torch.Generator().manual_seed(0)
    label = torch.randint(50, (9,), generator=source)
    found = []
    for method in ("ours", name):
        source.manual_seed(1)
        hidden = torch.randn(9, 6, generator=source).requires_grad_()
        weight = torch.randn(50, 6, generator=source).requires_grad_()
        loss = METHODS[method](hidden, weight, label)
        loss.backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow  # starts processes
def test_loss_full_logits_too_large_extrapolated():
    bench = benchmark(free_memory=30_000)  # enough for 8 tokens, not for 16
    bench.measure_time()
    bench.measure_memory()
    result = bench.result
    assert result.settings["loss"]["naive_measured_at_tokens"] == [4, 8]
    note = "extrapolated linearly to 16 tokens from 4 and 8"
    assert result.notes["loss_peak_memory_naive"] == note
    assert result.notes["loss_peak_memory_ratio"] == f"full logits: {note}"
    for suffix in ("", "_naive", *(["_torch"] if has_operator() else [])):
        assert result.figures[f"loss_seconds{suffix}"][1] == "s"
        assert result.figures[f"loss_peak_memory{suffix}"][1] == "GiB"


def test_loss_timed_tokens_shrink_until_they_fit():
    bench = benchmark(free_memory=1)
    assert bench.timed == 2
    assert bench.result.settings["loss"]["timed_tokens"] == 2


def test_loss_failed_methods_have_no_memory():
    bench = benchmark()
    bench.measure_memory()
    assert bench.result.figures == {}
    assert list(bench.result.missing) == ["loss_peak_memory_ratio"]
