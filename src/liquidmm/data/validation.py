"""Checked access to the values of a JSON object.

Each function returns the value unchanged, or raises a `DataError` that starts with `where` and
names the key. Nothing is converted or stripped.
"""

from collections.abc import Mapping
from typing import Any

from liquidmm.errors import DataError


def string(obj: Mapping[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    """Return the string value of a key.

    Args:
        obj: The object.
        name: The key.
        where: Start of the message, such as `file:line`.
        empty: Whether to accept an empty string or a missing key, which gives "".

    Raises:
        DataError: The value is not a string, is empty, or cannot be encoded as UTF-8.
    """
    value = obj.get(name, "" if empty else None)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{name}' must be a string (got {describe(value)}). Correct the record."
        )
    if not empty and not value.strip():
        raise DataError(f"{where}: '{name}' is empty. Fill it in or drop the record.")
    _check_encoding(value, name, where)
    return value


def strings(value: object, name: str, where: str) -> tuple[str, ...]:
    """Return a list of strings as a tuple; the list can be empty, but its strings cannot.

    Raises:
        DataError: The value is not a list, or an item is not a string, is empty, or cannot be
            encoded as UTF-8.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(
            f"{where}: '{name}' must be a list of strings (got {describe(value)}). "
            "Correct the record."
        )
    for item in value:
        if not item.strip():
            raise DataError(f"{where}: '{name}' contains an empty string. Fill it in or remove it.")
        _check_encoding(item, name, where)
    return tuple(value)


def lookup(obj: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key, or None; `a.b` is key `b` in `a` unless there is a key `a.b`."""
    if name in obj:
        return obj[name]
    first, dot, rest = name.partition(".")
    inner = obj.get(first)
    return lookup(inner, rest) if dot and isinstance(inner, Mapping) else None


def names(obj: Mapping[str, Any]) -> str:
    """List the keys of an object for a message."""
    return ", ".join(sorted(map(str, obj))) or "no keys"


def describe(value: object) -> str:
    """Format the type and at most 60 characters of a value for a message."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def _check_encoding(value: str, name: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = value[error.start]
        if "\udc80" <= bad <= "\udcff":  # how a byte that is not UTF-8 is decoded
            what = f"is not UTF-8 (byte 0x{ord(bad) & 0xFF:x} at {error.start})"
        else:
            # JSON can contain half of a surrogate pair, but UTF-8 cannot encode it
            what = f"contains half of a surrogate pair ({bad!a} at {error.start})"
        raise DataError(f"{where}: '{name}' {what}. Correct the record.") from error
