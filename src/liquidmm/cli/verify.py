"""`liquid verify`: check a folder of encoded shards for damage."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Check the shards of a folder against their checksums.

    Lists each damaged shard with the source chunk it was made from.
    """
    from tqdm import tqdm

    from liquidmm.data.shards import verify
    from liquidmm.errors import DataError

    count, damaged = 0, 0
    for _, problem in tqdm(verify(folder), unit="shard", disable=None):
        count += 1
        damaged += bool(problem)
        if problem:
            tqdm.write(problem, file=sys.stderr)
    if damaged:
        raise DataError(f"{folder}: {damaged} of {count} shards are damaged (listed above).")
    click.echo(f"{folder}: {count} shards, all intact")
