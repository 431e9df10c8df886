"""Numbers with their units, in the one form in which `evaluate` and `bench` report them.

Contract: as JSON, a name maps to ``{"value": ..., "unit": ...}``, and a value that is not finite is
null; as a table, each figure has a line, with a remark in brackets where there is one. Nothing here
measures or rounds what it is given, except `rounded`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number with its unit."""

    value: float
    """The number; nan or infinite if there is none."""
    unit: str
    """Unit, for example "%" or "dB"."""


def rounded(value: float, unit: str) -> Figure:
    """Make a figure of four decimals."""
    return Figure(value=round(value, 4) if math.isfinite(value) else value, unit=unit)


def to_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """Give the JSON form.

    Args:
        figures: Figures by name.

    Returns:
        Name to value and unit, in the same order.
    """
    return {
        name: {"value": figure.value if math.isfinite(figure.value) else None, "unit": figure.unit}
        for name, figure in figures.items()
    }


def to_lines(figures: Mapping[str, Figure], remarks: Mapping[str, str]) -> list[str]:
    """Give the lines of the table.

    Args:
        figures: Figures by name.
        remarks: What stands in brackets behind some of them.

    Returns:
        A line for each figure, in the same order; names and numbers stand below each other.
    """
    width = max(map(len, figures), default=0)
    return [
        f"  {name:<{width}}  {_number(figure.value):>9} {figure.unit}"
        + (f"  ({remarks[name]})" if name in remarks else "")
        for name, figure in figures.items()
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
