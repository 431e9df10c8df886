"""Run files: TOML (or any mapping) to frozen dataclasses and back.

A schema is a dataclass whose fields are bool, int, float, str, Path, Literal, `X | None`,
`tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` or another such dataclass. The default of a field is
the only default, and `ranges` checks its bounds. A class variable ``RENAMED`` maps old keys to new
ones, so the error for an old run file suggests the new key.

Unknown, missing and ill-typed keys raise `ConfigError` with the file and the dotted key. An int is
accepted where a float is expected; a bool is never a number. Relative paths are relative to the
working directory, except that ``extends = "other.toml"`` is relative to the file that contains it.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from liquidmm.errors import ConfigError, suggest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

EXTENDS = "extends"
"""Key of a run file that names the file it extends; it is not part of any schema."""


def from_dict(schema: type[S], data: Mapping[str, Any], where: str) -> S:
    """Build a configuration from the values of a TOML or JSON file.

    Args:
        schema: The dataclass to build.
        data: Keys and values; tables are mappings.
        where: Start of every error message, such as the path of the run file.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or is out of range.
    """
    return _Reader(where).table(schema, data, "")


def load_run(schema: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a TOML run file and the files it extends, then apply command-line overrides.

    A file with ``extends`` contains only its differences from the other file. Tables are merged key
    by key; everything else, including a list of tables, is replaced as a whole.

    Args:
        schema: The dataclass to build.
        path: The run file.
        overrides: Items such as "a.b=1". The value is parsed as TOML, or is a string if that fails.
            A number in the key is an index into a list ("sources.0.weight=2").

    Raises:
        ConfigError: A file cannot be read or is not valid TOML, files extend each other in a cycle,
            an override has no "=", or `from_dict` fails.
    """
    data = _read(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(f"--set {override}: expected key=value, such as train.steps=100.")
        _assign(data, [part.strip() for part in key.split(".")], _parse_value(text), override)
    return from_dict(schema, data, str(path))


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Convert a configuration to JSON-compatible values, which `from_dict` reads back.

    A Path becomes a string, and a tuple becomes a list.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Read a run file and merge it over the one it extends; ``children`` extend this file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"cannot be read ({error.strerror})."
        if children:
            raise ConfigError(
                f"{children[-1]}: {EXTENDS}: {path} {reason} Use the path of a TOML file relative "
                f"to {children[-1].parent}."
            ) from error
        raise ConfigError(f"{path}: {reason} Use the path of a TOML run file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: invalid TOML: {error}. Correct that line.") from error
    if EXTENDS not in data:
        return data
    name = data.pop(EXTENDS)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: {EXTENDS}: expected a path, got {name!r}.")
    chain = (*children, path)
    parent = path.parent / name
    if parent.resolve() in {file.resolve() for file in chain}:
        circle = " -> ".join(map(str, (*chain, parent)))
        raise ConfigError(f"{path}: {EXTENDS}: circular reference: {circle}.")
    return _merged(_read(parent, chain), data)


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; for everything else, the child takes precedence."""
    merged = dict(parent)
    for key, value in child.items():
        before = parent.get(key)
        tables = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = _merged(cast("dict[str, Any]", before), value) if tables else value
    return merged


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def _assign(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    node: Any = data
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else _item(node, key, override)
    if isinstance(node, dict):
        node[keys[-1]] = value
        return
    _item(node, keys[-1], override)
    node[int(keys[-1])] = value


def _item(node: Any, key: str, override: str) -> Any:
    if not isinstance(node, list):
        raise ConfigError(
            f"--set {override}: '{key}' is below a value that is not a table. Check the key."
        )
    if not key.isdecimal() or int(key) >= len(node):
        known = f"an index from 0 to {len(node) - 1}" if node else "no index into an empty list"
        raise ConfigError(f"--set {override}: expected {known}, got '{key}'.")
    return node[int(key)]


@functools.cache
def _hints(schema: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _name_of(kind: Any) -> str:
    """Describe a type in TOML terms."""
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
    }
    if kind in names:
        return names[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name_of(option) for option in arguments if option is not types.NoneType)
    return "a list" if origin is tuple else "a table"


class _Reader:
    """Builds dataclasses from plain values; every error starts with ``where``."""

    def __init__(self, where: str) -> None:
        self.where = where

    def error(self, key: str, what: str) -> ConfigError:
        place = f"{self.where}: {key}" if key else self.where
        return ConfigError(f"{place}: {what}")

    def table(self, schema: type[S], data: Any, prefix: str) -> S:
        if not isinstance(data, Mapping):
            raise self.wrong(schema, data, prefix)
        fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
        for key in data:
            if key not in fields:
                renamed = getattr(schema, "RENAMED", {}).get(key)
                hint = f" It is now '{renamed}'." if renamed else suggest(str(key), fields)
                raise self.error(_join(prefix, str(key)), f"unknown key.{hint}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            key = _join(prefix, name)
            if name in data:
                values[name] = self.value(_hints(cast(Any, schema))[name], data[name], key)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise self.error(key, "missing. Add it to the run file or pass it with --set.")
        try:
            return schema(**values)
        except ValueError as error:
            # Messages of `__post_init__` start with the field; replace it with the full dotted key.
            name, colon, rest = str(error).partition(":")
            if colon and name in fields:
                raise self.error(_join(prefix, name), rest.strip()) from error
            raise self.error(prefix, str(error)) from error

    def value(self, kind: Any, data: Any, key: str) -> Any:
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            return self.union(kind, data, key)
        if origin is Literal:
            matches = [
                choice
                for choice in typing.get_args(kind)
                if choice == data and type(choice) is type(data)
            ]
            if not matches:
                choices = map(str, typing.get_args(kind))
                hint = suggest(data, choices) if isinstance(data, str) else ""
                raise self.wrong(kind, data, key, hint)
            return matches[0]
        if origin is tuple:
            return self.sequence(kind, data, key)
        if origin in (dict, Mapping):
            if not isinstance(data, Mapping):
                raise self.wrong(kind, data, key)
            item = typing.get_args(kind)[1]
            return {name: self.value(item, value, _join(key, name)) for name, value in data.items()}
        if dataclasses.is_dataclass(kind):
            if isinstance(data, cast(type[Any], kind)):
                return data
            return self.table(cast(type[Any], kind), data, key)
        return self.scalar(kind, data, key)

    def scalar(self, kind: Any, data: Any, key: str) -> Any:
        if kind is Any:
            return data
        if kind is float and isinstance(data, int) and not isinstance(data, bool):
            return float(data)
        if kind is Path and isinstance(data, str | Path):
            return Path(data)
        if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
            raise self.wrong(kind, data, key)
        return data

    def sequence(self, kind: Any, data: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise self.wrong(kind, data, key)
        items = typing.get_args(kind)
        if len(items) == 2 and items[1] is Ellipsis:
            items = (items[0],) * len(data)
        if len(items) != len(data):
            raise self.error(key, f"expected {len(items)} items, got {len(data)}.")
        return tuple(
            self.value(item, value, f"{key}.{place}")
            for place, (item, value) in enumerate(zip(items, data, strict=True))
        )

    def union(self, kind: Any, data: Any, key: str) -> Any:
        options = typing.get_args(kind)
        if data is None and types.NoneType in options:
            return None
        options = tuple(option for option in options if option is not types.NoneType)
        if len(options) == 1:
            return self.value(options[0], data, key)
        for option in options:
            try:
                return self.value(option, data, key)
            except ConfigError:
                continue
        raise self.wrong(kind, data, key)

    def wrong(self, kind: Any, data: Any, key: str, hint: str = "") -> ConfigError:
        return self.error(key, f"expected {_name_of(kind)}, got {data!r}.{hint}")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
