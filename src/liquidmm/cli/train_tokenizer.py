"""`liquid train-tokenizer`: train an image tokenizer from a run file.

Contract: the tokenizer's folder goes to stdout, progress and scores to stderr.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train-tokenizer")
@click.argument("run_file", metavar="RUN.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run's folder.")
@click.option("--stop-at", type=click.IntRange(min=1), help="Stop at this step; resume later.")
def command(run_file: Path, overrides: tuple[str, ...], resume: bool, stop_at: int | None) -> None:
    """Train an image tokenizer from RUN.toml and print its folder."""
    from liquidmm.config import load_run
    from liquidmm.image_tokenizer.training.config import TokenizerRun
    from liquidmm.image_tokenizer.training.trainer import train_tokenizer

    run = load_run(TokenizerRun, run_file, overrides)
    click.echo(train_tokenizer(run, resume=resume, stop_at=stop_at))
