"""`liquid evaluate`: figures of a checkpoint.

Contract: the table or, with --json, one JSON object goes to stdout; progress goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("evaluate")
@click.argument("task")
@click.option("--checkpoint", type=_FOLDER, help="Checkpoint folder.  [default: the shipped model]")
@click.option(
    "--data", type=_FOLDER, help="Data folder.  [default: data/icons, data/scenes, data/text]"
)
@click.option(
    "--baseline", type=_FOLDER, help="Another causal language model beside it (task text)."
)
@click.option("--n", type=int, help="Size of each sample.  [default: the task's own]")
@click.option("--seed", default=0, show_default=True, help="Seed of samples and pictures.")
@click.option("--guidance", type=float, help="Guidance of pictures.  [default: the checkpoint's]")
@click.option(
    "--temperature", type=float, help="Temperature of pictures.  [default: the checkpoint's]"
)
@click.option("--batch", default=25, show_default=True, help="Pictures at a time.")
@click.option("--device", help="cpu, cuda or mps.  [default: the best there is]")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="dtype of the weights: float32, bfloat16 or float16.",
)
@click.option("--quantize", help="Quantize the weights: int8 (CPU only).")
@click.option("-o", "--out", type=_FOLDER, help="Keep answers, pictures and the result here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(task: str, checkpoint: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a checkpoint.

    TASK is one of:

    \b
    prompt-fidelity  is a drawn icon nearest to the real icon asked for?
    captions         does the description name the right concept?
    scenes           are questions about unseen scenes answered right?
    text             perplexity and bits per byte on held-out text
    reconstruction   PSNR and codebook use of the image tokenizer
    contact-sheet    real icons, reconstructions, drawings: one PNG into --out

    With --out an interrupted run goes on where it stopped.
    """  # noqa: D301 - click wants the control character
    from liquidmm.evaluate.runner import EvaluateConfig, run

    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    with _bars() as show:
        report = run(task, EvaluateConfig(**options), progress=show)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_table())


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar on stderr at a time; a new name ends the last one."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.desc.rstrip(": ") != what:
            if bar is not None:
                bar.close()
            bar = tqdm(total=total, desc=what)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
