"""`liquid train`: train a checkpoint by a run file.

Contract: the folder that came out goes to stdout; the progress bar and notes to stderr. Samples are
drawn with the generation engine into OUT/samples; a picture that can't be drawn is a warning, since
it must not end a training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from liquidmm.train.config import TrainRun
    from liquidmm.train.trainer import OnSample


@click.command("train")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@click.option("--resume", is_flag=True, help="Go on with a stopped run although settings changed.")
def command(run: Path, overrides: tuple[str, ...], resume: bool) -> None:
    """Train a checkpoint by the TOML file RUN.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from liquidmm.config import load_run
    from liquidmm.train.config import TrainRun
    from liquidmm.train.trainer import train

    settings = load_run(TrainRun, run, overrides)
    on_sample = _sampler(settings) if settings.sample.prompts else None
    click.echo(train(settings, on_sample, resume=resume))


def _sampler(run: TrainRun) -> OnSample:
    from dataclasses import replace

    from liquidmm.errors import LiquidError
    from liquidmm.generate.liquid import Liquid
    from liquidmm.model.checkpoint import Checkpoint
    from liquidmm.runtime import atomic_file, get_logger
    from liquidmm.vision.pixels import contact_sheet

    prompts = run.sample.prompts
    seeds = range(run.sample.seed, run.sample.seed + len(prompts))

    def draw(checkpoint: Checkpoint, step: int) -> None:
        path = run.out / "samples" / f"step-{step:08d}.png"
        try:
            liquid = Liquid.from_checkpoint(checkpoint)
            sampling = replace(liquid.sampling, guidance=run.sample.guidance)
            pictures = liquid.draw_many(prompts, seeds=seeds, sampling=sampling)
            with atomic_file(path) as temporary:
                contact_sheet(pictures, columns=8, captions=prompts).save(temporary)
        except LiquidError as error:
            get_logger(__name__).warning("no samples after step %d: %s", step, error)

    return draw
