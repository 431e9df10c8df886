"""`liquid export`: write a checkpoint in the form that another engine loads.

Contract: the folder written goes to stdout.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="ENGINE", help="vllm or gguf.")
@click.option(
    "--dtype",
    metavar="TYPE",
    help="float32, bfloat16, float16; for gguf also q8_0.  [default: the checkpoint's]",
)
def command(checkpoint: str, out: Path, to: str, dtype: str | None) -> None:
    """Write a checkpoint in the form that vLLM or llama.cpp loads.

    CHECKPOINT is a folder or owner/name on the hub; OUT is the folder to write. vllm writes a stock
    transformers folder, gguf a file model.gguf for llama.cpp; docs/engines.md says what runs where.
    """
    from liquidmm.export.folder import export

    click.echo(export(checkpoint, out, to, dtype))
