"""`liquid init-base`: make a small random language model from texts.

Contract: the run file names the texts and the shape; the folder written goes to stdout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import click

from liquidmm.config import load_run
from liquidmm.errors import ConfigError
from liquidmm.model.scratch import ScratchConfig, build_base, read_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRun:
    """What a run file of `liquid init-base` holds."""

    out: Path
    """Folder to write; must be missing or empty."""
    texts: tuple[Path, ...]
    """JSON lines files of records the tokenizer learns from."""
    base: ScratchConfig = field(default_factory=ScratchConfig)
    """Shape of the model."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ConfigError("texts: is empty. Name at least one JSON lines file of records.")


@click.command("init-base")
@click.argument("run_file", metavar="RUN.toml", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key.")
def command(run_file: Path, overrides: tuple[str, ...]) -> None:
    """Make a small random language model and its tokenizer from texts.

    The result is a plain Hugging Face folder for `liquid expand`. RUN.toml holds out, texts and a
    table [base] with vocab_size, hidden, layers, heads, kv_heads, intermediate, context and seed.
    """
    run = load_run(BaseRun, run_file, overrides)
    texts = chain.from_iterable(map(read_texts, run.texts))
    click.echo(build_base(texts, run.out, run.base))
