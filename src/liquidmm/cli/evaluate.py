"""`liquid evaluate`: measure a checkpoint. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from liquidmm.evaluate.runner import Task

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def tasks() -> dict[str, Task]:
    """Return all tasks by name."""
    from liquidmm.evaluate.reconstruction import RECONSTRUCTION
    from liquidmm.evaluate.text import TEXT
    from liquidmm.icons.benchmark.answers import CAPTIONS, SCENES
    from liquidmm.icons.benchmark.images import CONTACT_SHEET, ICONS

    return {
        "icons": ICONS,
        "captions": CAPTIONS,
        "scenes": SCENES,
        "text": TEXT,
        "reconstruction": RECONSTRUCTION,
        "contact-sheet": CONTACT_SHEET,
    }


@click.command("evaluate")
@click.argument("task")
@click.option("--checkpoint", type=_FOLDER, help="Checkpoint folder.  [default: the shipped model]")
@click.option(
    "--data",
    type=_PATH,
    help="Data folder, or a JSON Lines file of images (task reconstruction).  [default: "
    "data/icons, data/scenes or data/text]",
)
@click.option(
    "--baseline", type=_FOLDER, help="Another causal language model to compare with (task text)."
)
@click.option("--limit", type=int, help="Maximum items per test.  [default: set by the task]")
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option(
    "--guidance", type=float, help="Guidance scale for images.  [default: the checkpoint's]"
)
@click.option(
    "--temperature", type=float, help="Temperature for images.  [default: the checkpoint's]"
)
@click.option(
    "--resolution",
    type=int,
    help="Resize and crop images to this square (task reconstruction).  [default: original size]",
)
@click.option("--batch-size", default=25, show_default=True, help="Number of images per batch.")
@click.option("--device", help="cpu, cuda or mps.  [default: the fastest available]")
@click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16", "float16")),
    default="auto",
    show_default=True,
    help="dtype of the weights.",
)
@click.option("--quantize", type=click.Choice(("int8",)), help="Quantize the weights (CPU only).")
@click.option("-o", "--out", type=_FOLDER, help="Folder for answers, images and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(task: str, checkpoint: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a checkpoint.

    TASK is one of:

    \b
    icons            is a generated icon closest to the real icon of its prompt?
    captions         does the caption name the right concept?
    scenes           are questions about unseen scenes answered correctly?
    text             perplexity and bits per byte on held-out text
    reconstruction   PSNR and codebook use of the image tokenizer, on any images
    contact-sheet    real, reconstructed and generated icons in one PNG in --out

    With --out, an interrupted run can be resumed.
    """  # noqa: D301 - click wants the control character
    from liquidmm.evaluate import runner

    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    with _bars() as show:
        report = runner.run(task, tasks(), runner.EvaluateConfig(**options), progress=show)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_table())


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar at a time; a new name replaces the previous bar."""
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
