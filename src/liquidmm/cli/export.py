"""`liquid export`: write a checkpoint in the format of another engine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "target", required=True, metavar="FORMAT", help="vllm or gguf.")
@click.option(
    "--dtype",
    metavar="DTYPE",
    help="float32, bfloat16 or float16; for gguf also q8_0.  [default: the checkpoint's]",
)
def command(checkpoint: str, out: Path, target: str, dtype: str | None) -> None:
    """Export a checkpoint to vLLM or llama.cpp.

    CHECKPOINT is a folder or owner/name on the Hugging Face hub; OUT is the folder to write. The
    format vllm is a stock transformers folder; gguf is one file, OUT/model.gguf, for llama.cpp.
    """
    from liquidmm.export.export import export_checkpoint

    click.echo(export_checkpoint(checkpoint, out, target, dtype))
