"""The methods of the loss agree, and their measurement says how it was made."""

import pytest
import torch

from liquidmm.bench.loss import METHODS, LossSizes, _LossBench, has_operator, measure_loss
from liquidmm.bench.report import Result
from liquidmm.errors import ConfigError

SIZES = LossSizes(tokens=16, timed_tokens=8, vocabulary=50, hidden=6)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ours"])
def test_methods_agree(name):
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


def test_measurement():
    result = Result(bench="train")
    measure_loss(result, SIZES, "cpu", 5.0, lambda _: None)
    figures = result.figures
    names = ["", "_naive"] + (["_torch"] if has_operator() else [])
    for suffix in names:
        assert figures[f"loss_seconds{suffix}"].value >= 0
        assert figures[f"loss_seconds{suffix}"].unit == "s"
        assert figures[f"loss_peak_memory{suffix}"].unit == "GiB"
    assert figures["loss_speed_ratio"].value == pytest.approx(
        figures["loss_seconds_naive"].value / figures["loss_seconds"].value, abs=10
    )
    assert result.settings["loss"]["naive_measured_at_tokens"] == [16]
    assert "16 tokens" in result.notes["loss_peak_memory_ratio"]


def test_full_logits_that_do_not_fit_are_extrapolated(monkeypatch):
    result = Result(bench="train")
    bench = _LossBench(result, SIZES, "cpu", 5.0, lambda _: None)
    monkeypatch.setattr(_LossBench, "fits", lambda self, tokens: tokens < SIZES.tokens)
    bench.time()
    bench.weigh()
    assert result.settings["loss"]["naive_measured_at_tokens"] == [4, 8]
    note = "extrapolated linearly to 16 tokens from 4 and 8"
    assert result.notes["loss_peak_memory_naive"] == note
    assert result.notes["loss_peak_memory_ratio"] == f"full logits: {note}"


def test_timed_tokens_shrink_until_they_fit(monkeypatch):
    monkeypatch.setattr(_LossBench, "fits", lambda self, tokens: tokens <= 2)
    result = Result(bench="train")
    assert _LossBench(result, SIZES, "cpu", 1.0, lambda _: None).timed == 2
    assert result.settings["loss"]["timed_tokens"] == 2


def test_a_method_that_fails_takes_only_its_own_figures():
    result = Result(bench="train")
    bench = _LossBench(result, SIZES, "cpu", 1.0, lambda _: None)
    bench.step = {}
    bench.weigh()
    assert result.figures == {}
    assert result.missing == {"loss_peak_memory_ratio": "one of its two peaks is missing"}


@pytest.mark.parametrize(
    ("values", "words"),
    [({"tokens": 1}, "at least 2"), ({"tokens": 8, "timed_tokens": 9}, "at most tokens")],
)
def test_bad_sizes(values, words):
    with pytest.raises(ConfigError, match=words):
        LossSizes(**values)
