"""`liquid encode`: records and their pictures become shards of codes.

Contract: the folder of shards goes to stdout (or the manifest with --json); progress and the
summary of refused entries go to stderr.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from liquidmm.encode import EncodeRun

_PATH = click.Path(path_type=Path)
_KEYS = {
    "tokenizer": "tokenizer",
    "out": "out",
    "size": "encode.size",
    "workers": "engine.workers",
}
"""Option -> key of the run file."""


@click.command("encode")
@click.argument("source")
@click.option("--tokenizer", type=_PATH, help="Folder or file of the image tokenizer.")
@click.option("-o", "--out", type=_PATH, help="Folder for the shards.")
@click.option("--size", type=click.IntRange(1), help="Side of the pictures in pixels.")
@click.option("--workers", type=click.IntRange(0), help="Processes; 0: one per core or GPU.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def command(
    source: str,
    overrides: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Turn pictures and their texts into shards of codes.

    SOURCE is a run file (.toml), or whatever `[source] path` of a run file may be: a file of
    records or published data, a folder of pictures with captions in .txt files beside them, a
    pattern or a URL; these need --tokenizer and --out. A run that was broken off goes on where it
    stopped.
    """
    from liquidmm.config import to_dict
    from liquidmm.data.manifest import REJECTED
    from liquidmm.encode import TokenizerFile, encode

    given = {name: value for name, value in options.items() if value is not None}
    run = _run(source, given, overrides)
    tokenizer = TokenizerFile(path=run.tokenizer, device=run.device)
    manifest = encode(run.source, tokenizer, run.out, run.encode, run.engine)
    totals = manifest.totals
    if manifest.complete:
        kinds = ", ".join(f"{count} {kind}" for kind, count in totals.kinds.items())
        click.echo(f"{totals.records} records ({kinds}), {totals.images} pictures", err=True)
    if totals.rejected:
        click.echo(f"{totals.rejected} entries refused, see {run.out / REJECTED}", err=True)
    click.echo(json.dumps(to_dict(manifest), indent=2) if as_json else str(run.out))


def _run(source: str, given: dict[str, Any], overrides: tuple[str, ...]) -> EncodeRun:
    """Read the run file, or make a run of the options; an option wins over the file."""
    from liquidmm.config import from_dict, load_run
    from liquidmm.encode import EncodeRun

    if source.endswith(".toml"):
        quoted = [f"{_KEYS[name]}={json.dumps(_plain(value))}" for name, value in given.items()]
        return load_run(EncodeRun, Path(source), [*overrides, *quoted])
    if not {"tokenizer", "out"} <= given.keys():
        raise click.UsageError("Without a run file, --tokenizer and --out are needed.")
    if overrides:
        raise click.UsageError("--set changes a run file; write one for these settings.")
    run: dict[str, Any] = {"source": {"path": source}}
    for name, value in given.items():
        table, _, key = _KEYS[name].rpartition(".")
        (run.setdefault(table, {}) if table else run)[key] = _plain(value)
    return from_dict(EncodeRun, run, "options")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
