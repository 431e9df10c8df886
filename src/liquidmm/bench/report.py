"""The result of a benchmark: figures, how some were come by, what is lacking and why, settings.

Contract: the JSON form is one object: ``bench``, ``figures`` (name -> value and unit), ``notes``
(name -> what has to be known of a figure), ``missing`` (name -> why there is no figure) and
``settings`` (the machine, the versions and the sizes). A figure is measured or absent, never made
up.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from liquidmm import __version__
from liquidmm.figures import Figure, rounded, to_json, to_lines


@dataclass(kw_only=True, slots=True)
class Result:
    """What one benchmark found."""

    bench: str
    """Name of the benchmark."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What has to be the same for figures like these."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """All numbers."""
    notes: dict[str, str] = field(default_factory=dict)
    """What has to be known of some of them."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why there is no such figure."""

    def number(self, name: str, value: float, unit: str, note: str | None = None) -> None:
        """Add a figure, with a note where it isn't plain how it was come by."""
        self.figures[name] = rounded(value, unit)
        if note is not None:
            self.notes[name] = note

    def lacks(self, name: str, reason: str) -> None:
        """Say why a figure is absent."""
        self.missing[name] = reason

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "bench": self.bench,
            "figures": to_json(self.figures),
            "notes": self.notes,
            "missing": self.missing,
            "settings": self.settings,
        }

    def to_table(self) -> str:
        """The same for a reader."""
        lines = [self.bench, *to_lines(self.figures, self.notes)]
        if self.missing:
            lines += ["not measured", *_pairs(self.missing)]
        return "\n".join([*lines, "settings", *_pairs(dict(_flat(self.settings)))])


def machine(device: torch.device) -> dict[str, Any]:
    """Say what was measured on, and with which versions.

    Args:
        device: The device that computes.

    Returns:
        Cores, threads, processor, memory and versions, JSON-able.
    """
    told: dict[str, Any] = {
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "liquidmm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told["device"] = properties.name
        told["device_memory_gib"] = round(properties.total_memory / 2**30, 1)
    return told


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def _pairs(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in texts.items()]
