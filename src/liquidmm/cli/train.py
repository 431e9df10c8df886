"""`liquid train`: train a checkpoint by a run file.

Contract: the folder that came out goes to stdout, once; the progress bar and notes to stderr.
Samples come from the generation engine and go to OUT/samples; a picture that can't be drawn is a
warning, since it must not end a training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from liquidmm.train.config import TrainConfig
    from liquidmm.train.trainer import OnSample


@click.command("train")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@click.option("--resume", is_flag=True, help="Go on with a stopped run although settings changed.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only check the run and its files and say what it would need, without loading weights. "
    "The options below belong to it.",
)
@click.option("--num-gpus", "num_gpus", type=int, help="Devices to plan for (1).")
@click.option("--gpu-memory", "gpu_memory_gib", type=float, help="GiB of each device (80).")
@click.option(
    "--peak-tflops", type=float, help="Dense peak of each (that of the GPU here, or of an H100)."
)
@click.option(
    "--assumed-mfu", "assumed_mfu", type=float, help="Share of the peak that is reached (0.4)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
def command(
    run: Path,
    overrides: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **machine: float | None,
) -> None:
    """Train a checkpoint by the TOML file RUN.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from liquidmm.config import load_run
    from liquidmm.train.config import TrainConfig

    given = {name: value for name, value in machine.items() if value is not None}
    if (given or as_json) and not dry_run:
        raise click.UsageError(
            "--num-gpus, --gpu-memory, --peak-tflops, --assumed-mfu and --json need --dry-run."
        )
    settings = load_run(TrainConfig, run, overrides)
    if dry_run:
        click.echo(_plan(settings, given, as_json))
        return
    from liquidmm.train.trainer import train

    wanted = settings.sample.prompts or settings.sample.questions
    on_sample = _sampler(settings) if wanted else None
    folder = train(settings, on_sample, resume=resume)
    if not int(os.environ.get("RANK", "0")):
        click.echo(folder)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written. At the interpreter's own exit, threads of gloo may still abort it.
        sys.stdout.flush()
        os._exit(0)


def _plan(run: TrainConfig, machine: dict[str, float], as_json: bool) -> str:
    import json

    from liquidmm.config import from_dict, to_dict
    from liquidmm.train.plan import Machine, make_plan, report

    plan = make_plan(run, from_dict(Machine, machine, "--dry-run"))
    return json.dumps(to_dict(plan), indent=2) if as_json else report(plan)


def _sampler(run: TrainConfig) -> OnSample:
    from dataclasses import replace

    from liquidmm.errors import LiquidError
    from liquidmm.files import atomic_file
    from liquidmm.generate.liquid import Liquid
    from liquidmm.image_tokenizer.images import contact_sheet
    from liquidmm.model.checkpoint import Checkpoint
    from liquidmm.runtime import get_logger

    prompts, questions = run.sample.prompts, run.sample.questions
    seeds = range(run.sample.seed, run.sample.seed + len(prompts))

    def show(checkpoint: Checkpoint, step: int) -> None:
        path = run.out / "samples" / f"step-{step:08d}.png"
        try:
            liquid = Liquid(checkpoint)
            pairs: list[tuple[str, str]] = []
            if prompts:
                sampling = liquid.sampling
                if run.sample.guidance is not None:
                    sampling = replace(sampling, guidance=run.sample.guidance)
                pictures = liquid.generate_images(prompts, seeds=seeds, sampling=sampling)
                with atomic_file(path) as temporary:
                    contact_sheet(pictures, columns=8, captions=prompts).save(temporary)
                pairs += zip(prompts, liquid.describe_many(pictures), strict=True)
            for question in questions:
                reply = liquid.chat([{"role": "user", "content": question}], max_tokens=64)
                pairs.append((question, reply.text))
            with atomic_file(path.with_suffix(".txt")) as temporary:
                text = "".join(f"{asked}\n    {told}\n" for asked, told in pairs)
                temporary.write_text(text, encoding="utf-8")
        except LiquidError as error:
            get_logger(__name__).warning("no samples after step %d: %s", step, error)

    return show
