"""Training of large shapes on a GPU: ids a second, share of the peak, memory.

Contract: first the fast path (bfloat16, compiled blocks, flex_attention, recomputed activations)
has to give what the plain one (float32, sdpa) gives on the same weights and rows, within the
tolerances below; where it doesn't, nothing is timed. Weights are random, ids too: neither changes
the time. A shape that doesn't fit is absent, with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from liquidmm.bench.job import Job, Shape
from liquidmm.bench.ours import make_trainee, states_and_loss, train_packed
from liquidmm.bench.report import Result
from liquidmm.bench.speed import ROUNDS, measure_efficiency, measure_speed
from liquidmm.bench.worker import EndedError, Lap, Pacer, Worker, alternate, median_rate
from liquidmm.errors import ConfigError, suggest
from liquidmm.runtime import resolve_device
from liquidmm.train.batch import Batch
from liquidmm.train.config import LoopConfig
from liquidmm.train.flops import flops_per_token, mfu, peak_flops
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig

LOSS_TOLERANCE = 0.02
"""Largest difference of the loss in nats."""
STATE_TOLERANCE = 0.05
"""Largest difference of the last hidden states, by the norm of the plain path's; documents that see
each other differ by far more."""
GRADIENT_TOLERANCE = 0.05
"""Largest difference of the gradient's norm, by that of the plain path."""

_GIB = 2**30
_CHECKED_ROWS = 2

# SmolLM2-135M, Llama-3.2-1B and Llama-2-7B, each with 8,192 codes. Weights and AdamW in float32 of
# the last one take 110 GB alone.
SHAPES = {
    "135m": Shape(
        name="135m",
        hidden=576,
        layers=30,
        heads=9,
        kv_heads=3,
        intermediate=1536,
        vocabulary=49_152 + 8192,
        tied=True,
        micro_rows=8,
    ),
    "1b": Shape(
        name="1b",
        hidden=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        intermediate=8192,
        vocabulary=128_256 + 8192,
        tied=True,
        micro_rows=4,
    ),
    "7b": Shape(
        name="7b",
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        intermediate=11_008,
        vocabulary=32_000 + 8192,
        tied=False,
        micro_rows=1,
    ),
}
"""Name -> shape."""
COMPARED = "135m"
"""The shape that is also trained the release's way."""
FAST = ModelConfig(
    attn_implementation="flex_attention", compile=True, activation_checkpointing=True
)
"""How our side computes a model on a GPU."""


def shape_of(name: str) -> Shape:
    """Give a shape by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in SHAPES:
        raise ConfigError(f"--sizes: '{name}' is unknown.{suggest(name, SHAPES)}")
    return SHAPES[name]


def job_of(shape: Shape, device: str, model: ModelConfig = FAST) -> Job:
    """Make the training of a shape on a GPU."""
    loop = LoopConfig(
        steps=1,
        global_batch_size=shape.rows,
        micro_batch_size=shape.micro_rows,
        precision="bfloat16",
    )
    return Job(source=shape, loop=loop, model=model, optim=OptimConfig(), device=device)


def measure_size(
    result: Result, job: Job, seconds: float, size: int, progress: Callable[[str], None]
) -> None:
    """Check and time one shape, and compare it with the release's way where it is the small one.

    Args:
        result: Where figures go, or the reasons why there are none.
        job: The training of the shape.
        seconds: Time for the laps, about.
        size: Sequences in a padded batch.
        progress: Told what is being done.
    """
    assert isinstance(job.source, Shape), "a shape is measured"
    name = job.source.name
    prefix = f"{name}_"
    reason = check_fast_path(result, job, prefix, progress)
    if reason is not None:
        result.lacks(f"{prefix}tokens_per_second", reason)
        return
    progress(f"{name}: training")
    with Worker(train_packed, job.device, job) as worker:
        laps, ended = alternate({name: worker}, seconds=seconds, rounds=ROUNDS, warm=3)
    if ended:
        result.lacks(f"{prefix}tokens_per_second", ended[name])
        return
    _report(result, job, laps[name], prefix)
    if name == COMPARED:
        accumulate = measure_efficiency(result, job, 8, size, prefix)
        measure_speed(result, job, size, accumulate, seconds, prefix=prefix, progress=progress)


def check_fast_path(
    result: Result, job: Job, prefix: str, progress: Callable[[str], None]
) -> str | None:
    """Compare the job's fast path with the plain one.

    Args:
        result: Where the differences go.
        job: What is trained how.
        prefix: What the names of the figures begin with.
        progress: Told what is being done.

    Returns:
        Why nothing may be timed; None where the two agree.
    """
    progress(f"{prefix}check: fast path against float32 and sdpa")
    try:
        with Worker(check_side, job.device, job) as worker:
            found = worker.lap().counts
    except EndedError as error:
        return f"check: {error}"
    result.number(f"{prefix}loss_difference", found["loss"], "nats")
    result.number(f"{prefix}state_difference", 100 * found["state"], "%")
    result.number(f"{prefix}gradient_difference", 100 * found["gradient"], "%")
    result.settings[f"{prefix}tolerances"] = {
        "loss_nats": LOSS_TOLERANCE,
        "state_percent": 100 * STATE_TOLERANCE,
        "gradient_percent": 100 * GRADIENT_TOLERANCE,
    }
    within = (
        found["loss"] <= LOSS_TOLERANCE
        and found["state"] <= STATE_TOLERANCE
        and found["gradient"] <= GRADIENT_TOLERANCE
    )
    return None if within else "the fast path differs from the plain one"


def check_side(pacer: Pacer, job: Job) -> None:
    """Compare the job's fast path with the plain one; counts the three differences.

    Args:
        pacer: Says when.
        job: What is trained how.
    """
    rows = job.rows().take(range(_CHECKED_ROWS))
    batch = Batch.of(rows, pacer.device)
    plain = replace(job.model, attn_implementation="sdpa", compile=False)
    while pacer.go():
        found = []
        for config, precision in ((plain, torch.float32), (job.model, job.precision)):
            trainee = make_trainee(job, config, precision)
            found.append(states_and_loss(trainee, batch))
            del trainee
        (states, loss, norm), (fast_states, fast_loss, fast_norm) = found
        real = batch.task_ids.cpu() >= 0
        difference = (fast_states - states)[real].norm() / states[real].norm()
        pacer.count(
            loss=abs(fast_loss - loss),
            state=float(difference),
            gradient=abs(fast_norm - norm) / norm,
        )


def _report(result: Result, job: Job, laps: list[Lap], prefix: str) -> None:
    assert isinstance(job.source, Shape), "a shape is measured"
    rate = median_rate(laps, "tokens")
    result.number(f"{prefix}tokens_per_second", rate, "ids/s")
    totals = {name: sum(lap.counts[name] for lap in laps) for name in laps[0].counts}
    flops = flops_per_token(
        job.source.config(),
        2 * totals["seen"] / totals["tokens"] + 1,
        labelled_share=totals["labels"] / totals["tokens"],
    )
    peak = peak_flops(resolve_device(job.device), job.precision)
    if peak is None:
        result.lacks(f"{prefix}mfu", "the peak of this device is not in the table of train/flops")
    else:
        result.number(f"{prefix}mfu", 100 * mfu(rate, flops, peak), "%", "of ids, not of padding")
    if laps[-1].memory is not None:
        result.number(f"{prefix}peak_memory", laps[-1].memory / _GIB, "GiB")
    result.settings[job.source.name] = {
        "rows_in_a_step": job.loop.global_batch_size,
        "micro_batch_rows": job.loop.micro_batch_size,
        "row_length": job.source.length,
        "precision": job.loop.precision,
        "attention": job.model.attn_implementation,
        "compiled": job.model.compile,
        "checkpoint_activations": job.model.activation_checkpointing,
        "gigaflops_for_an_id": round(flops / 1e9, 6),
        "seconds_for_a_step": round(statistics.median(lap.seconds / lap.steps for lap in laps), 3),
        "rounds": len(laps),
    }
