"""`liquid encode`: records and their pictures become shards of codes.

Contract: the folder of shards goes to stdout (or the manifest with --json); progress and the
summary of refused entries go to stderr.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from liquidmm.data.encode import EncodeRun

_PATH = click.Path(path_type=Path)


@click.command("encode")
@click.argument("source", type=_PATH)
@click.option("--tokenizer", type=_PATH, help="Folder or file of the image tokenizer.")
@click.option("-o", "--out", type=_PATH, help="Folder for the shards.")
@click.option("--size", type=click.IntRange(1), help="Side of the pictures in pixels.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def command(
    source: Path,
    tokenizer: Path | None,
    out: Path | None,
    size: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn pictures and their texts into shards of codes.

    SOURCE is a run file (.toml), a file of records or published conversations (.jsonl, .json,
    .parquet) or a folder of pictures with captions in .txt files beside them; the last two need
    --tokenizer and --out. A run that was broken off goes on where it stopped.
    """
    from liquidmm.config import to_dict
    from liquidmm.data.encode import encode
    from liquidmm.data.manifest import QUARANTINE
    from liquidmm.runtime import device_of
    from liquidmm.vision.tokenizer import load_image_tokenizer

    run = _run(source, tokenizer, out, size, overrides)
    image_tokenizer = load_image_tokenizer(run.tokenizer).to(device_of(run.device))
    manifest = encode(run.source, image_tokenizer, run.out, run.encode)
    totals = manifest.totals
    kinds = ", ".join(f"{count} {kind}" for kind, count in totals.kinds.items())
    click.echo(f"{totals.records} records ({kinds}), {totals.pictures} pictures", err=True)
    if totals.refused:
        click.echo(f"{totals.refused} entries refused, see {run.out / QUARANTINE}", err=True)
    click.echo(json.dumps(to_dict(manifest), indent=2) if as_json else str(run.out))


def _run(
    source: Path,
    tokenizer: Path | None,
    out: Path | None,
    size: int | None,
    overrides: tuple[str, ...],
) -> EncodeRun:
    """Read the run file, or make a run of the options; an option wins over the file."""
    from liquidmm.config import from_dict, load_run
    from liquidmm.data.encode import EncodeRun

    given = {
        name: value for name, value in (("tokenizer", tokenizer), ("out", out)) if value is not None
    }
    encode = {} if size is None else {"size": size}
    if source.suffix == ".toml":
        quoted = [f"{name}={json.dumps(str(value))}" for name, value in given.items()]
        quoted += [f"encode.{name}={value}" for name, value in encode.items()]
        return load_run(EncodeRun, source, [*overrides, *quoted])
    if len(given) < 2:
        raise click.UsageError("Without a run file, --tokenizer and --out are needed.")
    if overrides:
        raise click.UsageError("--set changes a run file; write one for these settings.")
    return from_dict(EncodeRun, {"source": source, **given, "encode": encode}, "options")
