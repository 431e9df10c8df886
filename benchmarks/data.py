"""Data: images to codes against the reference, and the speed and memory of loading.

Encoding compares `liquid encode` with one image at a time in one process, as the reference
implementation does. The large tokenizer is Chameleon's at 512 pixels with random weights; the small
one is the checkpoint's own. Loading reads synthetic shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from _encoding import MODELS, PRECISIONS, EncodingSizes, measure_encoding
from _loading import LoadingSizes, measure_loading
from _results import SECONDS, Integers, Names, Result, machine, script
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.runtime import resolve_device

PARTS = ("encoding", "loading")


@script("data")
@click.option("--only", type=Names(*PARTS), default=",".join(PARTS), help="Parts to run.")
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_MODEL,
    show_default="the included model",
    help="Checkpoint with the tokenizers.",
)
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="the system's",
    help="Folder for temporary shards, 3 GB.",
)
@click.option("--device", default="cpu", help="Device that encodes.")
@click.option("--models", type=Names(*MODELS), default=",".join(MODELS), help="Image tokenizers.")
@click.option("--precisions", type=Names(*PRECISIONS), default="float32", help="Of our encoding.")
@click.option(
    "--seconds", type=SECONDS, show_default="90, loading 25", help="Time of a comparison."
)
@click.option("--workers", type=click.IntRange(0), default=2, help="Processes that load.")
@click.option("--samples", type=Integers(), default="1000000,10000000", help="Records, for memory.")
def main(
    result: Result,
    only: tuple[str, ...],
    checkpoint: Path,
    scratch: Path | None,
    device: str,
    seconds: float | None,
    **options: Any,
) -> None:
    """Compare encoding with the reference, and measure the loading of shards."""
    resolved = resolve_device(device)
    result.settings |= machine(resolved)
    if "encoding" in only:
        sizes = EncodingSizes(
            seconds=seconds or 90.0, models=options["models"], precisions=options["precisions"]
        )
        measure_encoding(result, sizes, checkpoint, str(resolved))
    if "loading" in only:
        loading = LoadingSizes(
            seconds=seconds or 25.0, workers=options["workers"], samples=options["samples"]
        )
        measure_loading(result, loading, checkpoint, scratch)


if __name__ == "__main__":
    main()
