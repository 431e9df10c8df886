"""`liquid bench`: ours beside the alternatives, measured in one run on this machine.

Contract: the table or, with --json, one JSON object goes to stdout; what is being done goes to
stderr.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("bench")
def command() -> None:
    """Compare with the alternatives, in one run on this machine."""


@command.command("train")
@click.option(
    "--data", type=_FOLDER, help="Where the run's folders of shards lie.  [default: data/shards]"
)
@click.option(
    "--run",
    type=_FILE,
    help="Run file with the mixture and the row length.  [default: recipes/icons/answers.toml]",
)
@click.option("--checkpoint", type=_FOLDER, help="What is trained.  [default: the shipped model]")
@click.option("--seconds", type=float, help="Time of each comparison, about.  [default: 120]")
@click.option("--device", help="cpu, cuda or mps.  [default: the best there is]")
@click.option("--sizes", help="Shapes to train on a GPU, with commas: 135m,1b,7b.")
@click.option("--only", help="Parts, with commas: efficiency,speed,loss,sizes.  [default: all]")
@click.option("--length", type=int, help="Ids in a row.  [default: the run's]")
@click.option("--steps", type=int, help="Steps whose rows are counted.  [default: 64]")
@click.option("--sequences", type=int, help="Sequences in a padded batch.  [default: 16]")
@click.option("--tokens", type=int, help="Labels of the loss, for memory.  [default: 8192]")
@click.option("--timed-tokens", type=int, help="Labels of the loss, for time.  [default: 1024]")
@click.option("--vocabulary", type=int, help="Rows of the loss's head.  [default: 264192]")
@click.option("--hidden", type=int, help="Width of the loss's head.  [default: 512]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(as_json: bool, sizes: str | None, only: str | None, **options: Any) -> None:
    """Compare training: packed rows and our loss with padding and full logits.

    The alternative is what the release of Liquid does: transformers.Trainer on batches that are
    padded to their longest sequence. Both train the same weights on the same sequences, by turns.
    """
    from liquidmm.bench.loss import LossSizes
    from liquidmm.bench.train import TrainBench, bench_train

    given = {name: value for name, value in options.items() if value is not None}
    loss = {
        name: given.pop(name)
        for name in ("tokens", "timed_tokens", "vocabulary", "hidden")
        if name in given
    }
    if "tokens" in loss:  # a small loss is timed as it is
        loss.setdefault("timed_tokens", min(loss["tokens"], LossSizes().timed_tokens))
    for name, text in (("sizes", sizes), ("parts", only)):
        if text is not None:
            given[name] = _names(text)
    config = TrainBench(**given, loss=LossSizes(**loss))
    result = bench_train(config, lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.to_table())


@command.command("data")
@click.option("--only", help="Parts, with commas: encoding,loading,formats.  [default: all]")
@click.option("--checkpoint", type=_FOLDER, help="Whose tokenizers.  [default: the shipped model]")
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for made-up shards, 3 GB for the time being.  [default: the system's]",
)
@click.option("--device", help="Where pictures are encoded.  [default: cpu]")
@click.option("--models", help="Tokenizers, with commas: large,small.  [default: both]")
@click.option("--precisions", help="Of encoding: float32,tf32,bfloat16.  [default: float32]")
@click.option("--seconds", type=float, help="Time of each comparison.  [default: 90, loading 25]")
@click.option("--workers", type=int, help="Processes that make rows.  [default: 2]")
@click.option("--samples", help="Records whose memory is compared.  [default: 1000000,10000000]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def data(as_json: bool, only: str | None, samples: str | None, **options: Any) -> None:
    """Compare encoding with the release's way; measure how fast data is loaded.

    The release encodes one picture at a time in one process; ours is liquid encode. Both encode the
    same pictures with the same weights, by turns: Chameleon's shape at 512 pixels with random
    weights, and the shipped model's own tokenizer.
    """
    from liquidmm.bench.data import DataBench, bench_data
    from liquidmm.bench.encoding import EncodingSizes
    from liquidmm.bench.loading import LoadingSizes
    from liquidmm.errors import ConfigError

    given = {name: value for name, value in options.items() if value is not None}
    encoding: dict[str, Any] = {
        name: _names(given.pop(name)) for name in ("models", "precisions") if name in given
    }
    loading: dict[str, Any] = {
        name: given.pop(name) for name in ("seconds", "workers") if name in given
    }
    if "seconds" in loading:
        encoding["seconds"] = loading["seconds"]
    if samples is not None:
        try:
            loading["samples"] = tuple(int(count) for count in samples.split(","))
        except ValueError as error:
            raise ConfigError(f"--samples: '{samples}' are no numbers with commas.") from error
    if only is not None:
        given["parts"] = _names(only)
    config = DataBench(**given, encoding=EncodingSizes(**encoding), loading=LoadingSizes(**loading))
    result = bench_data(config, lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.to_table())


@command.command("generate")
@click.option("--checkpoint", type=_FOLDER, help="The default model.  [default: the shipped one]")
@click.option("--models", help="With commas: default,135m,1b,7b.  [default: default,135m]")
@click.option("--batches", help="Pictures drawn at once, with commas.  [default: 1,8]")
@click.option("--codes", type=int, help="Codes of a picture.  [default: 64]")
@click.option("--best", help="Weights of the fastest setting on a CPU.  [default: int8]")
@click.option("--requests", type=int, help="Requests that memory is watched over.  [default: 500]")
@click.option("--seconds", type=float, help="Time of each comparison, about.  [default: 40]")
@click.option("--only", help="Parts, with commas: speed,memory.  [default: all]")
@click.option("--device", help="cpu, cuda or mps.  [default: the best there is]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def generate(
    as_json: bool, models: str | None, batches: str | None, only: str | None, **options: Any
) -> None:
    """Compare drawing with the release's loop and with transformers' generate.

    All draw the same prompts with the same weights and settings, guided, by turns. Random weights
    but for the default model; figures without a prefix are those of the 135M shape.
    """
    from liquidmm.bench.generate import GenerateBench, bench_generate
    from liquidmm.errors import ConfigError

    given = {name: value for name, value in options.items() if value is not None}
    for name, text in (("models", models), ("parts", only)):
        if text is not None:
            given[name] = _names(text)
    if batches is not None:
        if not all(name.isdecimal() for name in _names(batches)):
            raise ConfigError(f"--batches: '{batches}' holds what is no number. Write 1,8.")
        given["batches"] = tuple(map(int, _names(batches)))
    result = bench_generate(GenerateBench(**given), lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.to_table())


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
