"""The part of annotated-types that this package uses, for machines without it (`gpu.sh`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ge:
    """Greater than or equal to."""

    ge: Any


@dataclass(frozen=True)
class Gt:
    """Greater than."""

    gt: Any


@dataclass(frozen=True)
class Le:
    """Less than or equal to."""

    le: Any


@dataclass(frozen=True)
class Lt:
    """Less than."""

    lt: Any
