"""Run files: TOML (or any mapping) into frozen dataclasses and back.

Contract: a schema is a dataclass whose fields are bool, int, float, str, Path, Literal, `X | None`,
`tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` or another such dataclass. The field's default is the
only default. Unknown, missing and ill-typed keys raise `ConfigError` naming the file and the dotted
key. An int is taken where a float is asked for; a bool is never a number. Paths stay as written,
with one exception: a run file may build on another with a top-level ``extends = "other.toml"``,
which starts from its own folder.
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
"""Key of a run file that names the file it builds on; it never reaches the configuration."""


def from_dict(schema: type[S], data: Mapping[str, Any], where: str) -> S:
    """Build a configuration from plain values.

    Args:
        schema: The dataclass to build.
        data: Keys and plain values as TOML or JSON give them; tables are mappings.
        where: What the error message names first, for instance the run file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or a check of the
            dataclass itself failed.
    """
    return _Reader(where).table(schema, data, "")


def load_run(schema: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a TOML run file, with those it builds on, and apply overrides from the command line.

    A file with ``extends`` holds only what differs from the other file: tables are merged key by
    key, everything else is replaced as a whole, lists of tables too.

    Args:
        schema: The dataclass to build.
        path: The run file.
        overrides: "a.b=1" each; the value is TOML, and what isn't TOML is taken as a string. A
            number in the key is a place in a list ("sources.0.weight=2").

    Returns:
        The checked configuration.

    Raises:
        ConfigError: A file can't be read or isn't TOML, files build on each other in a circle, an
            override has no "=", or `from_dict` refused.
    """
    data = _read(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(
                f"--set {override}: has no key and value. Write key=value, for instance lr=1e-4."
            )
        _assign(data, [part.strip() for part in key.split(".")], _parse_value(text), override)
    return from_dict(schema, data, str(path))


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Turn a configuration into JSON-able values; `from_dict` reads them back.

    Args:
        config: A dataclass instance.

    Returns:
        Nested dicts and lists of bool, int, float, str and None; a Path becomes its string.
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
    """Read a run file and merge it into the one it builds on; ``children`` led here."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"can't be read ({error.strerror})."
        if children:
            raise ConfigError(
                f"{children[-1]}: {EXTENDS}: {path} {reason} Name a TOML file by its path from "
                f"{children[-1].parent}."
            ) from error
        raise ConfigError(f"{path}: {reason} Name a TOML run file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML ({error}). Correct that line.") from error
    if EXTENDS not in data:
        return data
    name = data.pop(EXTENDS)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: {EXTENDS}: must be a path, not {name!r}.")
    chain = (*children, path)
    parent = path.parent / name
    if parent.resolve() in {file.resolve() for file in chain}:
        circle = " -> ".join(map(str, (*chain, parent)))
        raise ConfigError(f"{path}: {EXTENDS}: goes round in a circle: {circle}. Cut it.")
    return _merged(_read(parent, chain), data)


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; of everything else the child's wins."""
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
            f"--set {override}: '{key}' would lie below a value that is no table. Check the key."
        )
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(
            f"--set {override}: '{key}' is no place in a list of {len(node)}. Count from 0."
        )
    return node[int(key)]


@functools.cache
def _hints(schema: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _name_of(kind: Any) -> str:
    """Say a type the way a user of TOML would."""
    names = {
        bool: "true or false",
        int: "a whole number",
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
    """Carries the name of the source, so that every message can start with it."""

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
                raise self.error(
                    _join(prefix, str(key)), f"is an unknown key.{suggest(str(key), fields)}"
                )
        values: dict[str, Any] = {}
        for name, field in fields.items():
            key = _join(prefix, name)
            if name in data:
                values[name] = self.value(_hints(cast(Any, schema))[name], data[name], key)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise self.error(key, "is missing. Add it to the run file or give it with --set.")
        try:
            return schema(**values)
        except ValueError as error:
            # A dataclass's own check names its field; here that field gets its full dotted key.
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
                hint = (
                    suggest(data, map(str, typing.get_args(kind))) if isinstance(data, str) else ""
                )
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
            raise self.error(key, f"has {len(data)} entries. Give {len(items)}.")
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
        return self.error(key, f"must be {_name_of(kind)}, not {data!r}.{hint}")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
