"""PackedSequence rows beside padded batches: how many positions carry ids, and how many ids a second.

Contract: both sides train the same weights on the same documents in the same order and type, with
AdamW and as many ids in an optimizer step as whole batches allow; each is timed from one step's end
to another's, with the drawing of its data and without its start.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from liquidmm.bench.job import Job
from liquidmm.bench.ours import counts_of, train_packed
from liquidmm.bench.padded import padded_share, train_padded
from liquidmm.bench.report import Result
from liquidmm.bench.worker import Lap, Worker, alternate, median_rate

ROUNDS = 6
"""Laps of each side."""
_GIB = 2**30


def measure_efficiency(result: Result, job: Job, steps: int, size: int, prefix: str = "") -> int:
    """Measure the share of positions that carry ids.

    Args:
        result: Where figures go.
        job: Whose rows.
        steps: Optimizer steps whose rows are looked at.
        size: Sequences in a padded batch.
        prefix: What the names of the figures begin with.

    Returns:
        Padded batches in an optimizer step of about as many ids as ours, at least 1.
    """
    stream = job.rows()
    rows = [row for _ in range(steps) for row in stream.take(job.lanes)]
    counts = counts_of(rows)
    packed = counts["tokens"] / counts["positions"]
    result.number(f"{prefix}packing_efficiency", 100 * packed, "%")
    share = padded_share(rows, size)
    result.number(f"{prefix}padded_efficiency", 100 * share, "%")
    result.settings[f"{prefix}efficiency"] = {
        "row_length": len(rows[0].input_ids),
        "rows": len(rows),
        "documents": counts["documents"],
        "mean_ids_of_a_document": round(counts["tokens"] / counts["documents"], 1),
        "padded_batch_sequences": size,
    }
    return max(1, round(counts["documents"] / steps / size))


def measure_speed(
    result: Result,
    job: Job,
    size: int,
    accumulate: int,
    seconds: float,
    *,
    prefix: str = "",
    progress: Callable[[str], None],
) -> None:
    """Measure the ids a second of both ways of training, by turns.

    Args:
        result: Where figures go, or the reason why there are none.
        job: What is trained.
        size: Sequences in a padded batch.
        accumulate: Padded batches in an optimizer step.
        seconds: Time for the laps of both sides together.
        prefix: What the names of the figures begin with.
        progress: Told what is being done.
    """
    progress(f"{prefix}training, packed and padded by turns")
    with (
        Worker(train_packed, job.device, job) as ours,
        Worker(train_padded, job.device, job, size, accumulate) as theirs,
    ):
        laps, ended = alternate({"ours": ours, "theirs": theirs}, seconds=seconds, rounds=ROUNDS)
    if ended:
        reason = "; ".join(f"{name}: {text}" for name, text in ended.items())
        result.lacks(f"{prefix}useful_tokens_speedup_vs_padded", reason)
        return
    ours_rate, theirs_rate = (median_rate(laps[name], "tokens") for name in ("ours", "theirs"))
    result.number(f"{prefix}useful_tokens_speedup_vs_padded", ours_rate / theirs_rate, "x")
    for name, rate, side in (("", ours_rate, "ours"), ("padded_", theirs_rate, "theirs")):
        result.number(f"{prefix}{name}useful_tokens_per_second", rate, "ids/s")
        _describe(result, f"{prefix}{name}", laps[side])
    result.settings[f"{prefix}speed"] = {
        "padded_batch_sequences": size,
        "padded_batches_in_a_step": accumulate,
        "micro_batch_rows": job.loop.micro_batch_size or job.loop.global_batch_size,
        "precision": job.loop.precision,
        "attention": job.model.attn_implementation,
        "compiled": job.model.compile,
        "max_z": job.optim.max_z_loss,
        "rounds": len(laps["ours"]),
    }
    for name, side in (("ids_in_a_step", "ours"), ("padded_ids_in_a_step", "theirs")):
        steps = sum(lap.steps for lap in laps[side])
        tokens = sum(lap.counts["tokens"] for lap in laps[side])
        result.settings[f"{prefix}speed"][name] = round(tokens / steps)
        result.settings[f"{prefix}speed"][name.replace("ids_in_a_step", "steps")] = steps


def _describe(result: Result, prefix: str, laps: list[Lap]) -> None:
    """Add what explains a speed: the share of the time that goes into data, and the memory."""
    drawing = statistics.median(lap.rate("drawing") for lap in laps)
    result.number(f"{prefix}data_share_of_time", 100 * drawing, "%")
    if laps[-1].memory is None:
        result.lacks(f"{prefix}training_peak_memory", "this system doesn't tell a process's peak")
    else:
        result.number(f"{prefix}training_peak_memory", laps[-1].memory / _GIB, "GiB")
