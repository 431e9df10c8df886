"""The queue before a scheduler in which the halves of a picture are one entry.

Contract: entries leave in the order in which they became complete. A half waits for the other one,
at most `PATIENCE` seconds; then it leaves alone. A pair leaves only when there is room for both
halves, and what came after it waits behind it, so that nobody is passed over for ever. Nothing here
knows an engine; `vllm_scheduler` asks and answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from liquidmm.export.pairs import Half

PATIENCE = 10.0
"""Seconds that a half waits for the other one."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What one step and the cache still hold, or what requests take of it."""

    rows: int
    """Requests in a step."""
    ids: int
    """Ids computed in a step."""
    blocks: int
    """Blocks of the key-value cache."""

    def holds(self, other: Room) -> bool:
        """Tell whether ``other`` fits in."""
        return other.rows <= self.rows and other.ids <= self.ids and other.blocks <= self.blocks

    def __add__(self, other: Room) -> Room:
        return Room(
            rows=self.rows + other.rows,
            ids=self.ids + other.ids,
            blocks=self.blocks + other.blocks,
        )


class PairQueue(Generic[R]):
    """Requests that wait to be started; any objects."""

    def __init__(self) -> None:
        """Start empty."""
        self._halves: dict[str, tuple[R, float]] = {}
        self._entries: deque[tuple[R, ...]] = deque()

    def __len__(self) -> int:
        """Count the requests."""
        return len(self._halves) + sum(map(len, self._entries))

    def add(self, request: R, half: Half | None, now: float) -> None:
        """Take a request in.

        Args:
            request: The request.
            half: Which half of a picture it is; None if none.
            now: Seconds of any clock.
        """
        if half is None or not half.needs_other:
            self._entries.append((request,))
        elif half.pair in self._halves:
            self._entries.append((self._halves.pop(half.pair)[0], request))
        else:
            self._halves[half.pair] = (request, now + PATIENCE)

    def leave(self, fits: Callable[[tuple[R, R]], bool], now: float) -> Iterator[R]:
        """Let go what may start.

        Args:
            fits: Whether both halves of a pair can start now; asked for one pair after the other,
                when what was yielded before has been started.
            now: Seconds of the clock of `add`.

        Yields:
            The requests, halves of a pair one after the other.
        """
        for name in [name for name, (_, end) in self._halves.items() if end <= now]:
            self._entries.append((self._halves.pop(name)[0],))
        while self._entries:
            entry = self._entries[0]
            if len(entry) == 2 and not fits((entry[0], entry[1])):
                return
            yield from self._entries.popleft()

    def remove(self, unwanted: Callable[[R], bool]) -> list[R]:
        """Take requests out; what is left of a pair leaves alone.

        Args:
            unwanted: Which ones.

        Returns:
            The requests taken out.
        """
        taken = [request for request, _ in self._halves.values() if unwanted(request)]
        taken += [request for entry in self._entries for request in entry if unwanted(request)]
        self._halves = {name: held for name, held in self._halves.items() if not unwanted(held[0])}
        left = (
            tuple(request for request in entry if not unwanted(request)) for entry in self._entries
        )
        self._entries = deque(entry for entry in left if entry)
        return taken


def blocks_of(ids: int, block_size: int, groups: int) -> int:
    """Count the cache blocks of a sequence.

    Args:
        ids: Length of the sequence.
        block_size: Ids in a block.
        groups: Groups of layers that have blocks of their own.
    """
    return -(-ids // block_size) * groups
