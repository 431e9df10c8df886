"""Range checks of configuration dataclasses, declared as `Annotated[int, Ge(1)]`."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, cast

from annotated_types import Ge, Gt, Le, Lt

from liquidmm.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_ranges(config: DataclassInstance) -> None:
    """Check every field against the bounds of its ``Annotated`` type; call it in `__post_init__`.

    Bounds apply to each element of a tuple and not to None. Floats must be finite.

    Raises:
        ConfigError: A value is out of range; the message starts with the name of the field.
    """
    hints = _annotated_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        bounds = _bounds(hints[field.name])
        if not bounds and not isinstance(value, float):
            continue
        values = value if isinstance(value, tuple) else (value,)
        if not all(_is_inside(item, bounds) for item in values if item is not None):
            expected = " and ".join(map(_describe_bound, bounds)) or "finite"
            raise ConfigError(f"{field.name}: expected a number {expected}, got {value!r}.")


class RangeChecked:
    """Base of configurations that check only their ranges."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_ranges(cast("DataclassInstance", self))


@functools.cache
def _annotated_hints(schema: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _bounds(kind: Any) -> tuple[Any, ...]:
    """Return the bounds of a type, of its non-None option, or of its elements."""
    if typing.get_origin(kind) is Annotated:
        return tuple(item for item in kind.__metadata__ if isinstance(item, Ge | Gt | Le | Lt))
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        for option in typing.get_args(kind):
            if bounds := _bounds(option):
                return bounds
    return ()


def _is_inside(value: Any, bounds: tuple[Any, ...]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    tests = {
        Ge: lambda bound: value >= bound.ge,
        Gt: lambda bound: value > bound.gt,
        Le: lambda bound: value <= bound.le,
        Lt: lambda bound: value < bound.lt,
    }
    return all(tests[type(bound)](bound) for bound in bounds)


def _describe_bound(bound: Any) -> str:
    if isinstance(bound, Ge):
        return f"of at least {bound.ge}"
    if isinstance(bound, Gt):
        return f"above {bound.gt}"
    return f"of at most {bound.le}" if isinstance(bound, Le) else f"below {bound.lt}"
