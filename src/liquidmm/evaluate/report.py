"""Results of an evaluation: numbers with units, as JSON or as a table.

The JSON result is one object: ``task``, ``figures`` (name to value and unit), ``counts`` (name to
right, n and the 95 % interval of the share) and ``settings`` (all that the results depend on). A
value that is not finite becomes null.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from liquidmm.evaluate.metrics import Accuracy, wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number with its unit."""

    value: float
    """The number; may be NaN or infinite."""
    unit: str
    """Unit, for example "%" or "dB"."""


def rounded(value: float, unit: str) -> Figure:
    """Return a figure with four decimals."""
    return Figure(value=round(value, 4) if math.isfinite(value) else value, unit=unit)


def to_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """Return the JSON form: name to value and unit, in the same order."""
    return {
        name: {"value": figure.value if math.isfinite(figure.value) else None, "unit": figure.unit}
        for name, figure in figures.items()
    }


def to_lines(figures: Mapping[str, Figure], remarks: Mapping[str, str]) -> list[str]:
    """Return the lines of an aligned table, with the remark of a figure in parentheses."""
    width = max(map(len, figures), default=0)
    return [
        f"  {name:<{width}}  {_number(figure.value):>9} {figure.unit}"
        + (f"  ({remarks[name]})" if name in remarks else "")
        for name, figure in figures.items()
    ]


@dataclass(kw_only=True, slots=True)
class Report:
    """Result of one task."""

    task: str
    """Name of the task."""
    settings: dict[str, Any]
    """All that the results depend on."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """All results by name."""
    counts: dict[str, Accuracy] = field(default_factory=dict)
    """Counts behind the results that are shares."""

    def add_accuracy(self, name: str, accuracy: Accuracy) -> None:
        """Add a share in percent, and its counts."""
        self.counts[name] = accuracy
        self.figures[name] = Figure(value=round(accuracy.percent, 2), unit="%")

    def add(self, name: str, value: float, unit: str) -> None:
        """Add a number."""
        self.figures[name] = rounded(value, unit)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON result."""
        counts = {}
        for name, accuracy in self.counts.items():
            low, high = wilson(accuracy)
            counts[name] = {
                "right": accuracy.right,
                "n": accuracy.n,
                "low": round(low, 2),
                "high": round(high, 2),
            }
        return {
            "task": self.task,
            "figures": to_json(self.figures),
            "counts": counts,
            "settings": self.settings,
        }

    def to_table(self) -> str:
        """Return a table for people: one line per result, with counts and interval of a share."""
        remarks = {}
        for name, accuracy in self.counts.items():
            low, high = wilson(accuracy)
            remarks[name] = (
                f"{accuracy.right} of {accuracy.n}; 95 % interval {low:.1f} to {high:.1f}"
            )
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return "\n".join([self.task, *to_lines(self.figures, remarks), f"  {settings}"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
