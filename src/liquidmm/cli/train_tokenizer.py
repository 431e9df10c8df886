"""The command `liquid train-tokenizer`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train-tokenizer")
@click.argument("run_file", metavar="RUN.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--resume", is_flag=True, help="Resume from the checkpoint in the output folder.")
@click.option("--stop-at", type=click.IntRange(min=1), help="Stop at this step with a checkpoint.")
def command(run_file: Path, overrides: tuple[str, ...], resume: bool, stop_at: int | None) -> None:
    """Train an image tokenizer from a TOML config.

    Prints the folder of the tokenizer.
    """
    from liquidmm.config import load_run
    from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
    from liquidmm.image_tokenizer.training.trainer import train_tokenizer

    run = load_run(TrainTokenizerConfig, run_file, overrides)
    click.echo(train_tokenizer(run, resume=resume, stop_at=stop_at))
