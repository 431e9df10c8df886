"""What a run would be: its model, data, memory and time, worked out without loading its weights.

Contract: `make_plan` makes every check of a run that needs no weights, raises what training would
raise, and writes nothing. Parameters, rows and positions are counted; what follows from a sample of
the data, the memory and the time are estimates, and `report` calls them so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from liquidmm.config import to_dict
from liquidmm.errors import ConfigError
from liquidmm.model.checkpoint import empty_language_model
from liquidmm.runtime import resolve_device
from liquidmm.train.config import TrainConfig
from liquidmm.train.data_plan import DataPlan, plan_data
from liquidmm.train.flops import flops_per_token, peak_flops, peak_of
from liquidmm.train.footprint import Footprint, footprint
from liquidmm.train.loss import head_of
from liquidmm.train.model import choose_trained, trained_share
from liquidmm.train.setup import open_setup

USABLE = 0.9
"""Share of a device's memory that a run may plan with; the rest is for what isn't counted."""

_GIB = 2**30
_ASSUMED_GPU = "NVIDIA H100"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a run is planned for."""

    num_gpus: int = 1
    """Ranks, one device each."""
    gpu_memory_gib: float = 80.0
    """Memory of a device in GiB."""
    peak_tflops: float | None = None
    """Dense peak of a device in the run's precision, in TFLOP/s; None takes that of the GPU here,
    or of an H100 where there is none that is known."""
    assumed_mfu: float = 0.4
    """Share of the peak that training is expected to reach."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_gpus < 1:
            raise ConfigError(f"num_gpus: must be at least 1 ({self.num_gpus}).")
        if not self.gpu_memory_gib > 0:
            raise ConfigError(f"gpu_memory_gib: must be above 0 ({self.gpu_memory_gib}).")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ConfigError(f"peak_tflops: must be above 0 ({self.peak_tflops}).")
        if not 0 < self.assumed_mfu <= 1:
            raise ConfigError(f"assumed_mfu: must be above 0 and at most 1 ({self.assumed_mfu}).")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run would be."""

    model: str
    """Class of the language model."""
    parameters: int
    """Its parameters; tied ones count once."""
    trained: int
    """Those that are trained, adapters included."""
    vocabulary: dict[str, int]
    """The id layout, and the rows of the table."""
    data: DataPlan
    """Its data."""
    steps: int
    """Optimizer steps."""
    ids_per_step: int
    """Positions of a step on all ranks, padding included."""
    ids: int
    """Positions of the run."""
    rows_per_rank: int
    """Rows of a step that each rank computes."""
    micro_batches: int
    """Parts it computes them in."""
    machine: Machine
    """What it is planned for."""
    memory: Footprint
    """Bytes of one rank; estimate."""
    memory_total: int
    """Those on the device together."""
    fits: bool
    """Whether they are at most `USABLE` of the device's memory."""
    flops_per_id: float
    """Operations that training needs for a position; estimate."""
    flops: float
    """Operations of the run; estimate."""
    peak_tflops: float
    """Peak of a device that is counted on."""
    peak_of: str
    """Whose peak that is."""
    hours: float
    """Time of all steps, without validation, samples and saves; estimate."""


def make_plan(run: TrainConfig, machine: Machine | None = None) -> Plan:
    """Check a run and work out what it would be.

    Args:
        run: The run.
        machine: What it is planned for; None is one rank with 80 GiB.

    Returns:
        The plan.

    Raises:
        ConfigError: A setting doesn't fit the model, the ranks or another setting.
        CheckpointError: The checkpoint is missing, broken or wasn't expanded.
        DataError: A folder of shards can't be read or doesn't fit, or an example is too long.
        MissingExtraError: The run has adapters, and PEFT isn't installed.
    """
    machine = machine or Machine()
    rows = run.rows_of_rank(machine.num_gpus)
    setup = open_setup(run, machine.num_gpus, torch.device("cpu"))
    model = empty_language_model(setup.folder)
    head_of(model)  # refuses one that the loss can't compute
    parameters = sum(weight.numel() for weight in model.parameters())
    table = cast("torch.nn.Embedding", model.get_input_embeddings()).num_embeddings
    choose_trained(model, setup.processor.vocabulary, run.model)
    memory = footprint(model, run, machine.num_gpus)

    step = run.train.global_batch_size * run.data.seq_len
    ids = run.train.steps * step
    data = plan_data(setup.stream, run.data.sources, run.data.packing, ids)
    flops = flops_per_token(
        model.config,
        data.length,
        labelled_share=data.labelled,
        trained_share=trained_share(model),
    )
    peak, owner = _peak(run, machine)
    return Plan(
        model=type(model).__name__,
        parameters=parameters,
        trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        vocabulary={**setup.processor.vocabulary.to_dict(), "rows": table},
        data=data,
        steps=run.train.steps,
        ids_per_step=step,
        ids=ids,
        rows_per_rank=rows,
        micro_batches=rows // (run.train.micro_batch_size or rows),
        machine=machine,
        memory=memory,
        memory_total=memory.total,
        fits=memory.total <= USABLE * machine.gpu_memory_gib * _GIB,
        flops_per_id=flops,
        flops=ids * flops,
        peak_tflops=peak / 1e12,
        peak_of=owner,
        hours=ids * flops / (machine.num_gpus * peak * machine.assumed_mfu) / 3600,
    )


def report(plan: Plan) -> str:
    """Write a plan for people.

    Args:
        plan: From `make_plan`.

    Returns:
        Lines of text, without a newline at the end.
    """
    return "\n".join([*_about_model(plan), *_about_data(plan), *_about_machine(plan)])


def _about_model(plan: Plan) -> Iterator[str]:
    layout = plan.vocabulary
    yield f"model     {plan.model}, {plan.parameters:,} parameters, {plan.trained:,} trained"
    yield (
        f"ids       {layout['text_size']} of text, {layout['codebook_size']} image codes from "
        f"{layout['image_offset']}; the table has {layout['rows']} rows"
    )


def _about_data(plan: Plan) -> Iterator[str]:
    yield "data      passes and ids are estimates from a sample"
    table = [("source", "task", "rows", "examples", "ids", "mean", "passes")]
    table += [
        (
            str(source.path),
            source.task,
            f"{source.rows:,}",
            f"{source.share:.1%}",
            f"{source.share_of_ids:.1%}",
            f"{source.mean_ids:.0f}",
            f"{source.passes:.2f}",
        )
        for source in plan.data.sources
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        yield "  " + "  ".join([*names, *numbers])
    yield f"  rows are {plan.data.fill:.1%} full; {plan.data.labelled:.1%} of the ids are learnt"
    yield f"steps     {plan.steps:,} of {plan.ids_per_step:,} ids, {plan.ids:,} in all"


def _about_machine(plan: Plan) -> Iterator[str]:
    machine, memory = plan.machine, plan.memory
    yield (
        f"ranks     {machine.num_gpus}; each computes {plan.rows_per_rank} rows of a step, "
        f"{plan.rows_per_rank // plan.micro_batches} at a time"
    )
    yield "memory    of a rank in GiB, estimate"
    for name, size in to_dict(memory).items():
        if name != "host":
            yield f"  {name:12} {size / _GIB:8.2f}"
    yield (
        f"  {'total':12} {plan.memory_total / _GIB:8.2f}  "
        f"{'fits' if plan.fits else 'does not fit'} into {USABLE:.0%} of {machine.gpu_memory_gib:g}"
    )
    if memory.host:
        yield f"  {'host':12} {memory.host / _GIB:8.2f}  of the CPU's memory, for each rank"
    yield f"time      {plan.hours:.3g} hours, estimate:"
    yield (
        f"  {plan.flops:.3g} operations, {machine.num_gpus} x {plan.peak_tflops:g} TFLOP/s "
        f"({plan.peak_of}), {machine.assumed_mfu:.0%} of it used"
    )


def _peak(run: TrainConfig, machine: Machine) -> tuple[float, str]:
    if machine.peak_tflops is not None:
        return machine.peak_tflops * 1e12, "as given"
    dtype: torch.dtype = getattr(torch, run.train.precision)
    here = resolve_device(None)  # the run's own device may be one of another machine
    peak = peak_flops(here, dtype)
    if peak is not None:
        return peak, torch.cuda.get_device_name(here)
    assumed = peak_of(_ASSUMED_GPU, dtype)
    assert assumed is not None
    return assumed, f"assumed: {_ASSUMED_GPU}"
