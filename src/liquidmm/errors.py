"""Exceptions for errors that a user can fix.

Each is a `LiquidError` whose text is one line: "field: expected X, got Y. Fix." The command line
prints that line and exits with 1. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LiquidError(Exception):
    """A user error or a limit of the machine, described in one line with the fix."""


class ConfigError(LiquidError, ValueError):
    """A run file, an option or an argument has an unknown key or an invalid value."""


class DataError(LiquidError, ValueError):
    """An image, a record or a shard cannot be read or is malformed."""


class CheckpointError(LiquidError):
    """A folder is not a checkpoint, or the checkpoint does not support the request."""


class MissingExtraError(LiquidError, ImportError):
    """A feature needs an optional package that is not installed."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException) -> str:
    """Return an exception's whole message on one line, without the file name of an `OSError`."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def suggest(name: str, choices: Iterable[str]) -> str:
    """Suggest a known name for an unknown one.

    Args:
        name: The unknown name.
        choices: The known names, in any order.

    Returns:
        " Did you mean 'x'?" if a choice is close, otherwise " Known: a, b, c."; "" without choices.
    """
    known = sorted(set(choices))
    if not known:
        return ""
    by_lower_case = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{by_lower_case[close[0]]}'?"
    return f" Known: {', '.join(known)}."
