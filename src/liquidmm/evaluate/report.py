"""Results of an evaluation: numbers with units, as JSON or as a table.

The JSON result is one object: ``task``, ``figures`` (name to value and unit), ``counts`` (name to
right, n and the 95 % interval of the percentage) and ``settings`` (all settings that affect the
results). Values that are not finite become null.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from liquidmm.evaluate.metrics import Accuracy, wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number with its unit."""

    value: float
    """The number; can be NaN or infinite."""
    unit: str
    """Unit, for example "%" or "dB"."""


@dataclass(kw_only=True, slots=True)
class Report:
    """Result of one task."""

    task: str
    """Name of the task."""
    settings: dict[str, Any]
    """All settings that affect the results."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    """All results by name."""
    counts: dict[str, Accuracy] = field(default_factory=dict)
    """Counts behind the percentages."""

    def add(self, name: str, value: float, unit: str) -> None:
        """Add a number, rounded to four decimals."""
        value = round(value, 4) if math.isfinite(value) else value
        self.metrics[name] = Metric(value=value, unit=unit)

    def add_accuracy(self, name: str, accuracy: Accuracy) -> None:
        """Add a percentage, rounded to two decimals, and its counts."""
        self.counts[name] = accuracy
        self.metrics[name] = Metric(value=round(accuracy.percent, 2), unit="%")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON result."""
        counts = {}
        for name, accuracy in self.counts.items():
            low, high = (round(end, 2) for end in wilson(accuracy))
            counts[name] = {"right": accuracy.right, "n": accuracy.n, "low": low, "high": high}
        return {
            "task": self.task,
            "figures": {
                name: {"value": m.value if math.isfinite(m.value) else None, "unit": m.unit}
                for name, m in self.metrics.items()
            },
            "counts": counts,
            "settings": self.settings,
        }

    def to_table(self) -> str:
        """Return an aligned table with the counts and interval of each percentage."""
        width = max(map(len, self.metrics), default=0)
        lines = [self.task]
        for name, metric in self.metrics.items():
            number = f"{metric.value:,.0f}" if abs(metric.value) >= 1000 else f"{metric.value:.4g}"
            line = f"  {name:<{width}}  {number:>9} {metric.unit}"
            if name in self.counts:
                accuracy = self.counts[name]
                low, high = wilson(accuracy)
                line += (
                    f"  ({accuracy.right} of {accuracy.n}; 95 % interval {low:.1f} to {high:.1f})"
                )
            lines.append(line)
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return "\n".join([*lines, f"  {settings}"])
