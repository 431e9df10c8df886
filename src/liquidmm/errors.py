"""What may go wrong through no fault of this package, as one small family of exceptions.

Contract: everything a user can cause is raised as a `LiquidError` whose text is one line,
"where: what (value). What to do."; the command line prints that line and exits with 1. Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LiquidError(Exception):
    """The user's mistake or the machine's limit, told in one line that names the remedy."""


class ConfigError(LiquidError, ValueError):
    """A run file, an option or an argument holds a wrong key or a wrong value."""


class DataError(LiquidError, ValueError):
    """An image, a record or a shard can't be read or breaks its format."""


class CheckpointError(LiquidError):
    """A folder is no checkpoint, or not one that fits what is asked of it."""


class MissingExtraError(LiquidError, ImportError):
    """A feature needs an optional package that isn't installed."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Point from an unknown name to the known ones.

    Args:
        name: What the user wrote.
        choices: What may be written, in any order.

    Returns:
        " Did you mean 'x'?" when one choice is close, otherwise " Known: a, b, c.", or "" without
        choices; it starts with a blank so that it can follow a sentence.
    """
    known = sorted(set(choices))
    if not known:
        return ""
    by_lower_case = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{by_lower_case[close[0]]}'?"
    return f" Known: {', '.join(known)}."
