"""The command `liquid info`, which reads configuration files but not weights."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from liquidmm import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "pyarrow")
_MODEL_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


@click.command("info")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(checkpoint: Path | None, as_json: bool) -> None:
    """Show versions, the device and a checkpoint's layout.

    CHECKPOINT is the folder of a Liquid model; without it, only the installation is shown.
    """
    report = {"installation": _installation()}
    if checkpoint is not None:
        report["checkpoint"] = _layout(checkpoint)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for title, rows in report.items():
        click.echo(title)
        for name, value in rows.items():
            click.echo(f"  {name:24} {value}")


def _installation() -> dict[str, Any]:
    from liquidmm.runtime import resolve_device, resolve_dtype

    device = resolve_device(None)
    found: dict[str, Any] = {"liquidmm": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["device"] = str(device)
    found["dtype"] = str(resolve_dtype("auto", device)).removeprefix("torch.")
    return found


def _layout(folder: Path) -> dict[str, Any]:
    from liquidmm.model.processor import read_config, read_vocabulary

    vocabulary, config = read_vocabulary(folder), read_config(folder)
    rows: dict[str, Any] = {"folder": str(folder)}
    rows["architecture"] = ", ".join(config.get("architectures") or ["unknown"])
    rows.update({key: config[key] for key in _MODEL_KEYS if key in config})
    rows.update(vocabulary.to_dict())
    rows["weights_mib"] = _weights_mib(folder)
    rows["image_tokenizer_mib"] = _weights_mib(folder / "image_tokenizer")
    return rows


def _weights_mib(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20, 1)
