"""Shapes with random weights: the parts of a GPU's measurement that run anywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from liquidmm.bench import sizes
from liquidmm.bench.job import RandomRows, Shape
from liquidmm.bench.ours import counts_of
from liquidmm.bench.report import Result
from liquidmm.bench.sizes import SHAPES, check_fast_path, job_of, measure_size, shape_of
from liquidmm.bench.train import icon_job
from liquidmm.errors import ConfigError
from liquidmm.train.flops import count_matrices
from liquidmm.train.model import ModelConfig

TINY = Shape(
    name="135m",  # the one that is compared
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate=48,
    vocabulary=64,
    tied=True,
    rows=2,
    micro_rows=1,
    length=128,
)
PLAIN = ModelConfig(activation_checkpointing=True)


def test_the_whole_measurement_on_a_cpu():
    result = Result(bench="train")
    measure_size(result, job_of(TINY, "cpu", PLAIN), 0.3, 2, lambda _: None)
    found = {name: figure.value for name, figure in result.figures.items()}
    assert found["135m_loss_difference"] < sizes.LOSS_TOLERANCE
    assert found["135m_state_difference"] < 100 * sizes.STATE_TOLERANCE
    assert found["135m_tokens_per_second"] > 0
    assert found["135m_useful_tokens_speedup_vs_padded"] > 0
    assert found["135m_padded_efficiency"] < found["135m_packing_efficiency"] <= 100
    assert list(result.missing) == ["135m_mfu"]
    assert result.settings["135m"]["precision"] == "bfloat16"
    assert result.settings["135m"]["gigaflops_for_an_id"] > 0


def test_nothing_is_timed_where_the_paths_differ(monkeypatch):
    monkeypatch.setattr(sizes, "LOSS_TOLERANCE", -1.0)
    result = Result(bench="train")
    measure_size(result, job_of(TINY, "cpu", PLAIN), 0.3, 2, lambda _: None)
    assert "differs" in result.missing["135m_tokens_per_second"]
    assert "135m_tokens_per_second" not in result.figures


def test_the_check_runs_on_a_checkpoint_too(config):
    job = icon_job(config, "cpu")
    job = replace(job, loop=replace(job.loop, precision="bfloat16"))
    result = Result(bench="train")
    assert check_fast_path(result, job, "", lambda _: None) is None
    assert 0 < result.figures["state_difference"].value < 100 * sizes.STATE_TOLERANCE


@pytest.mark.parametrize(("name", "millions"), [("135m", 139), ("1b", 1253), ("7b", 6641)])
def test_shapes_have_their_size(name, millions):
    matrices = count_matrices(SHAPES[name].config())
    assert round((matrices.blocks + matrices.head) / 1e6) == millions


def test_random_rows_are_like_the_papers():
    rows = RandomRows(100, 2048).take(range(32))
    counts = counts_of(rows)
    assert counts["tokens"] / counts["positions"] > 0.9
    assert 700 < counts["tokens"] / counts["documents"] < 1600
    assert max(int(row.input_ids.max()) for row in rows) < 100
    again = RandomRows(100, 2048).take(range(32))
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(rows, again, strict=True))


def test_unknown_shape():
    with pytest.raises(ConfigError, match="Did you mean"):
        shape_of("135M")


def test_the_shape_is_the_same_in_each_process():
    job = job_of(TINY, "cpu", PLAIN)
    first, second = (job.language_model().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
