"""Values of a JSON object, checked: what is taken out has the right type and can be written.

Contract: each function returns the value as it stands or raises a `DataError` that starts with
`where` and names the key; nothing is converted or stripped.
"""

from collections.abc import Mapping
from typing import Any

from liquidmm.errors import DataError


def string(obj: Mapping[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    """Return the string under a key.

    Args:
        obj: The object.
        name: The key.
        where: Start of the message, such as `file:line`.
        empty: Whether the key may be missing and the string empty; a missing one is "".

    Raises:
        DataError: It is no string, is empty, or holds half a character.
    """
    value = obj.get(name, "" if empty else None)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{name}' must be a string (got {describe(value)}). Correct the record."
        )
    if not empty and not value.strip():
        raise DataError(f"{where}: '{name}' is empty. Fill it in or leave the record out.")
    _check_characters(value, name, where)
    return value


def strings(value: object, name: str, where: str) -> tuple[str, ...]:
    """Return a list of strings as a tuple; it may be empty, its strings may not.

    Raises:
        DataError: It is no list, or one of its items is no string, empty, or holds half a
            character.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(
            f"{where}: '{name}' must be a list of strings (got {describe(value)}). "
            "Correct the record."
        )
    if not all(item.strip() for item in value):
        raise DataError(f"{where}: '{name}' holds an empty string. Fill it in or leave it out.")
    for item in value:
        _check_characters(item, name, where)
    return tuple(value)


def lookup(obj: Mapping[str, Any], name: str) -> Any:
    """Return the value under a key, or None; in `a.b`, unless that is a key, `b` lies in `a`."""
    if name in obj:
        return obj[name]
    first, dot, rest = name.partition(".")
    inner = obj.get(first)
    return lookup(inner, rest) if dot and isinstance(inner, Mapping) else None


def names(obj: Mapping[str, Any]) -> str:
    """Name the keys of an object in a message."""
    return ", ".join(sorted(map(str, obj))) or "no keys"


def describe(value: object) -> str:
    """Name type and value in a message, at most 60 characters of it."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def _check_characters(value: str, name: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = value[error.start]
        if "\udc80" <= bad <= "\udcff":  # what a byte that is not UTF-8 is decoded to
            what = f"is not UTF-8 (byte 0x{ord(bad) & 0xFF:x} at {error.start})"
        else:
            # JSON may spell one half of a surrogate pair; no file can hold it
            what = f"holds half a character ({bad!a} at {error.start})"
        raise DataError(f"{where}: '{name}' {what}. Correct the record.") from error
