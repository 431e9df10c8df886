"""The command `liquid init`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import ClassVar

import click

from liquidmm.config import load_run
from liquidmm.errors import ConfigError
from liquidmm.model.init_model import InitConfig, create_base_model, read_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class InitRunConfig:
    """The run file of `liquid init`."""

    RENAMED: ClassVar[Mapping[str, str]] = {"base": "model"}

    out: Path
    """Folder to write; must be missing or empty."""
    texts: tuple[Path, ...]
    """JSON Lines files of records that the tokenizer is trained on."""
    model: InitConfig = field(default_factory=InitConfig)
    """Shape of the model."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ConfigError("texts: is empty. Add at least one JSON Lines file of records.")


@click.command("init")
@click.argument("run_file", metavar="RUN.toml", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
def command(run_file: Path, overrides: tuple[str, ...]) -> None:
    """Create a small random language model and train its tokenizer.

    The result is a plain Hugging Face folder for `liquid expand`; its path is printed. RUN.toml
    contains out, texts and a table [model] with vocab_size, hidden_size, num_hidden_layers,
    num_attention_heads, num_key_value_heads, intermediate_size, max_position_embeddings and seed.
    """
    run = load_run(InitRunConfig, run_file, overrides)
    texts = chain.from_iterable(map(read_texts, run.texts))
    click.echo(create_base_model(texts, run.out, run.model))
