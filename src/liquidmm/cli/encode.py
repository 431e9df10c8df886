"""`liquid encode`: encode records and images into shards of image codes.

The output folder (with --json, the manifest) goes to stdout; progress and a summary go to stderr.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from liquidmm.data.manifest import Manifest
    from liquidmm.encode import EncodeConfig

_PATH = click.Path(path_type=Path)
_KEYS = {
    "tokenizer": "tokenizer",
    "out": "out",
    "resolution": "encode.resolution",
    "workers": "workers.num",
}
"""Option -> key of the run file."""


@click.command("encode")
@click.argument("source")
@click.option("--tokenizer", type=_PATH, help="Folder or file of the image tokenizer.")
@click.option("-o", "--out", type=_PATH, help="Output folder for the shards.")
@click.option("--resolution", type=click.IntRange(1), help="Width and height in pixels.")
@click.option(
    "--workers", type=click.IntRange(0), help="Number of processes; 0 means one per core or GPU."
)
@click.option(
    "--task", type=click.IntRange(0), metavar="I", help="Write only shards of task I (0 to N-1)."
)
@click.option("--num-tasks", type=click.IntRange(1), metavar="N", help="Number of tasks.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def command(
    source: str,
    overrides: tuple[str, ...],
    as_json: bool,
    task: int | None,
    num_tasks: int | None,
    **options: Any,
) -> None:
    """Encode images and their texts into shards of image codes.

    SOURCE is a run file (.toml), or anything that `[source] path` in a run file accepts: a file of
    records, a published dataset, a folder of images with captions in .txt files, a glob pattern or
    a URL. Without a run file, --tokenizer and --out are required.

    Re-running the same command resumes an interrupted run. To split a run across machines, start N
    commands with --task 0 to N-1 and the same --num-tasks N.
    """
    from liquidmm.config import to_dict
    from liquidmm.data.manifest import REJECTED

    if (task is None) != (num_tasks is None):
        raise click.UsageError("--task and --num-tasks must be given together.")
    given = {name: value for name, value in options.items() if value is not None}
    run = _load_config(source, given, overrides)
    manifest = _encode(run, source, given, overrides, task, num_tasks)
    totals = manifest.totals
    if manifest.complete:
        kinds = ", ".join(f"{count} {kind}" for kind, count in totals.kinds.items())
        click.echo(f"{totals.records} records ({kinds}), {totals.images} images", err=True)
    if totals.rejected:
        click.echo(f"{totals.rejected} records rejected, see {run.out / REJECTED}", err=True)
    click.echo(json.dumps(to_dict(manifest), indent=2) if as_json else str(run.out))


def _encode(
    run: EncodeConfig,
    source: str,
    given: dict[str, Any],
    overrides: tuple[str, ...],
    task: int | None,
    num_tasks: int | None,
) -> Manifest:
    from liquidmm.encode import TokenizerFile, encode, encode_task

    tokenizer = TokenizerFile(path=run.tokenizer, device=run.device)
    if task is not None and num_tasks is not None:
        return encode_task(run.source, tokenizer, run.out, task, num_tasks, run.encode, run.workers)
    if run.slurm is None:
        return encode(run.source, tokenizer, run.out, run.encode, run.workers, run.ray)
    from liquidmm.encode.on_slurm import submit

    command = ["liquid", "encode", source]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    for override in overrides:
        command += ["--set", override]
    return submit(run, run.slurm, command)


def _load_config(source: str, given: dict[str, Any], overrides: tuple[str, ...]) -> EncodeConfig:
    """Read the run file, or build a configuration from the options, which override the file."""
    from liquidmm.config import from_dict, load_run
    from liquidmm.encode import EncodeConfig

    if source.endswith(".toml"):
        quoted = [f"{_KEYS[name]}={json.dumps(_plain(value))}" for name, value in given.items()]
        return load_run(EncodeConfig, Path(source), [*overrides, *quoted])
    if not {"tokenizer", "out"} <= given.keys():
        raise click.UsageError("--tokenizer and --out are required without a run file.")
    if overrides:
        raise click.UsageError("--set requires a run file. Put these settings in one.")
    values: dict[str, Any] = {"source": {"path": source}}
    for name, value in given.items():
        table, _, key = _KEYS[name].rpartition(".")
        (values.setdefault(table, {}) if table else values)[key] = _plain(value)
    return from_dict(EncodeConfig, values, "options")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
