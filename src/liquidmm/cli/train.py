"""`liquid train`: train a model from a TOML config.

The folder of the result goes to stdout; the progress bar and messages go to stderr. Samples are
written to OUT/samples; if sampling fails, a warning is logged and training continues.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from liquidmm.train.config import TrainConfig
    from liquidmm.train.estimate import Estimate
    from liquidmm.train.trainer import OnSample

GIB = 2**30


@click.command("train")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--resume", is_flag=True, help="Resume even if settings changed.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the config and its files and estimate memory and time, without loading weights. "
    "The options below require it.",
)
@click.option("--num-gpus", type=int, help="Number of GPUs (default: 1).")
@click.option(
    "--gpu-memory", "gpu_memory_gib", type=float, help="Memory of a GPU in GiB (default: 80)."
)
@click.option(
    "--peak-tflops",
    type=float,
    help="Peak dense TFLOP/s of a GPU (default: those of this machine's GPU, or of an H100).",
)
@click.option("--assumed-mfu", type=float, help="Fraction of the peak to assume (default: 0.4).")
@click.option("--json", "as_json", is_flag=True, help="Print the estimate as one JSON object.")
def command(
    run: Path,
    overrides: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **machine: float | None,
) -> None:
    """Train a model from a TOML config.

    Running the same command again resumes an interrupted run.
    """
    from liquidmm.config import load_run
    from liquidmm.train.config import TrainConfig

    given = {name: value for name, value in machine.items() if value is not None}
    if (given or as_json) and not dry_run:
        raise click.UsageError(
            "--num-gpus, --gpu-memory, --peak-tflops, --assumed-mfu and --json require --dry-run."
        )
    config = load_run(TrainConfig, run, overrides)
    if dry_run:
        click.echo(_estimate(config, given, as_json))
        return
    from liquidmm.train.trainer import train

    on_sample = _sampler(config) if config.sample.prompts or config.sample.questions else None
    folder = train(config, on_sample, resume=resume)
    if not int(os.environ.get("RANK", "0")):
        click.echo(folder)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All files are written; on a normal exit, gloo's threads can abort the interpreter.
        sys.stdout.flush()
        os._exit(0)


def _estimate(config: TrainConfig, machine: dict[str, float], as_json: bool) -> str:
    import json

    from liquidmm.config import from_dict, to_dict
    from liquidmm.train.estimate import Machine, estimate

    found = estimate(config, from_dict(Machine, machine, "--dry-run"))
    if as_json:
        return json.dumps(to_dict(found), indent=2)
    return "\n".join([*_model_lines(found), *_data_lines(found), *_machine_lines(found)])


def _sampler(config: TrainConfig) -> OnSample:
    from dataclasses import replace

    from liquidmm.errors import LiquidError
    from liquidmm.files import atomic_file
    from liquidmm.generate.liquid import Liquid
    from liquidmm.image_tokenizer.images import contact_sheet
    from liquidmm.model.checkpoint import Checkpoint
    from liquidmm.runtime import get_logger

    prompts, questions = config.sample.prompts, config.sample.questions
    seeds = range(config.sample.seed, config.sample.seed + len(prompts))

    def on_sample(checkpoint: Checkpoint, step: int) -> None:
        path = config.out / "samples" / f"step-{step:08d}.png"
        try:
            liquid = Liquid(checkpoint)
            pairs: list[tuple[str, str]] = []
            if prompts:
                sampling = liquid.sampling
                if config.sample.guidance is not None:
                    sampling = replace(sampling, guidance=config.sample.guidance)
                images = liquid.generate_images(prompts, seeds=seeds, sampling=sampling)
                with atomic_file(path) as temporary:
                    contact_sheet(images, columns=8, captions=prompts).save(temporary)
                pairs += zip(prompts, liquid.describe_many(images), strict=True)
            for question in questions:
                reply = liquid.chat([{"role": "user", "content": question}], max_tokens=64)
                pairs.append((question, reply.text))
            with atomic_file(path.with_suffix(".txt")) as temporary:
                text = "".join(f"{prompt}\n    {answer}\n" for prompt, answer in pairs)
                temporary.write_text(text, encoding="utf-8")
        except LiquidError as error:
            get_logger(__name__).warning("no samples after step %d: %s", step, error)

    return on_sample


def _model_lines(found: Estimate) -> Iterator[str]:
    layout = found.vocabulary
    yield f"model     {found.model}, {found.parameters:,} parameters, {found.trained:,} trained"
    yield (
        f"tokens    {layout['text_size']} text tokens, {layout['codebook_size']} image tokens from "
        f"id {layout['image_offset']}; embedding table of {layout['rows']} rows"
    )


def _data_lines(found: Estimate) -> Iterator[str]:
    yield "data      tokens and epochs are estimates from a sample"
    table = [("source", "task", "samples", "share", "tokens", "mean", "epochs")]
    table += [
        (
            str(source.path),
            source.task,
            f"{source.samples:,}",
            f"{source.share:.1%}",
            f"{source.token_share:.1%}",
            f"{source.mean_tokens:.0f}",
            f"{source.epochs:.2f}",
        )
        for source in found.data.sources
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        yield "  " + "  ".join([*names, *numbers])
    data = found.data
    yield (
        f"  {data.packing_efficiency:.1%} of the positions are not padding, {data.targets:.1%} "
        "have a target"
    )
    yield (
        f"steps     {found.steps:,} of {found.tokens_per_step:,} tokens, {found.tokens:,} in total"
    )


def _machine_lines(found: Estimate) -> Iterator[str]:
    from liquidmm.config import to_dict
    from liquidmm.train.estimate import USABLE

    machine, memory = found.machine, found.memory
    yield (
        f"gpus      {machine.num_gpus}; each computes {found.batch_size_per_rank} sequences per "
        f"step, {found.batch_size_per_rank // found.micro_batches} at a time"
    )
    yield "memory    estimate for one GPU in GiB, without gathered weights and CUDA context"
    for name, size in to_dict(memory).items():
        if name != "cpu":
            yield f"  {name:12} {size / GIB:8.2f}"
    yield (
        f"  {'total':12} {found.memory_total / GIB:8.2f}  "
        f"{'fits' if found.fits else 'does not fit'} in {USABLE:.0%} of {machine.gpu_memory_gib:g}"
    )
    if memory.cpu:
        yield f"  {'cpu':12} {memory.cpu / GIB:8.2f}  of CPU memory, for each GPU"
    yield f"time      estimate: {found.hours:.3g} hours"
    yield (
        f"  {found.flops:.3g} FLOPs, {machine.num_gpus} x {found.peak_tflops:g} TFLOP/s "
        f"({found.peak_of}), assumed MFU {machine.assumed_mfu:.0%}"
    )
