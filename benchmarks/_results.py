"""The result of a benchmark, and the command line of its script.

The JSON form is one object: ``bench``, ``figures`` (name -> value and unit), ``notes`` (name -> how
a figure was measured, where that is not obvious), ``missing`` (name -> why there is no figure) and
``settings`` (machine, versions and sizes). A figure is measured or missing, never guessed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from liquidmm import __version__
from liquidmm.errors import LiquidError, suggest


@dataclass(kw_only=True, slots=True)
class Result:
    """The results of one script."""

    bench: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What must be equal to reproduce the figures."""
    figures: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Value and unit of each metric."""
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, note: str | None = None) -> None:
        """Add a figure, rounded to four decimals."""
        self.figures[name] = (round(value, 4) if math.isfinite(value) else value, unit)
        if note is not None:
            self.notes[name] = note

    def skip(self, name: str, reason: str) -> None:
        """Record why a figure is missing."""
        self.missing[name] = reason

    def add_or_skip(self, name: str, value: float | None, unit: str, reason: str = "") -> None:
        """Add a figure, or record why it is missing if the value is None."""
        if value is None:
            self.skip(name, reason)
        else:
            self.add(name, value, unit)

    def add_ratio(
        self, name: str, value: float | None, other: float | None, note: str | None = None
    ) -> None:
        """Add value / other, or record that one of them is missing."""
        if value is None or other is None:
            self.skip(name, "one of its two figures is missing")
        else:
            self.add(name, value / other, "x", note)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "bench": self.bench,
            "figures": {
                name: {"value": value if math.isfinite(value) else None, "unit": unit}
                for name, (value, unit) in self.figures.items()
            },
            "notes": self.notes,
            "missing": self.missing,
            "settings": self.settings,
        }

    def to_table(self) -> str:
        """Return the same as text."""
        width = max(map(len, self.figures), default=0)
        lines = [self.bench]
        for name, (value, unit) in self.figures.items():
            number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
            note = f"  ({self.notes[name]})" if name in self.notes else ""
            lines.append(f"  {name:<{width}}  {number:>9} {unit}{note}")
        if self.missing:
            lines += ["not measured", *_columns(self.missing)]
        return "\n".join([*lines, "settings", *_columns(dict(_flat(self.settings)))])


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and the versions of the libraries."""
    described: dict[str, Any] = {
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
        described["device"] = properties.name
        described["device_memory_gib"] = round(properties.total_memory / 2**30, 1)
    return described


class Names(click.ParamType):
    """A comma-separated list of known names."""

    name = "names"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Split and check the names."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        for name in names:
            if name not in self.known:
                self.fail(f"unknown name '{name}'.{suggest(name, self.known)}", param, ctx)
        return names


class Integers(click.ParamType):
    """A comma-separated list of positive integers."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Split and check the integers."""
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"expected comma-separated integers such as 1,8, got '{value}'.", param, ctx)
        return tuple(map(int, parts))


SECONDS = click.FloatRange(min=0, min_open=True)
"""The type of a duration option."""


class _TerminatedError(BaseException):
    """SIGTERM, such as from `timeout`."""


def script(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a script of a function that fills a result.

    The script prints a table, or JSON with --json. On SIGTERM it prints what was measured so far
    and exits with 1, as after an error.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, **options: Any) -> None:
            result = Result(bench=name)
            failure = None
            previous = signal.signal(signal.SIGTERM, _terminate)
            try:
                function(result, **options)
            except LiquidError as error:
                failure = " ".join(str(error).split())
            except _TerminatedError:
                failure = "terminated; the result is incomplete"
            finally:
                signal.signal(signal.SIGTERM, previous)
            if failure is None or result.figures:
                text = json.dumps(result.to_dict(), indent=2) if as_json else result.to_table()
                click.echo(text)
            if failure is not None:
                raise click.ClickException(failure)

        flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        settings = {"show_default": True, "help_option_names": ["-h", "--help"]}
        return click.command(context_settings=settings)(flag(run))

    return decorate


def _terminate(*_: Any) -> None:
    raise _TerminatedError


def progress(text: str) -> None:
    """Report on stderr what is being measured."""
    click.echo(text, err=True)


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


def _columns(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in texts.items()]
