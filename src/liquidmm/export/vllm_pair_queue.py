"""A queue in front of a scheduler that releases both requests of a guided pair together.

Pairs leave in the order in which they became complete, so no request starves. A request waits for
its partner for at most `PAIR_TIMEOUT` seconds and then leaves alone. A pair leaves only when both
requests fit. This module is independent of any engine; `vllm_scheduler` connects it to vLLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from liquidmm.export.vllm_pairs import GuidedRequest

PAIR_TIMEOUT = 10.0
"""Maximum time in seconds that a request waits for its partner."""

R = TypeVar("R")


class Capacity(NamedTuple):
    """The capacity of one step and of the cache, or the part of it that a request uses."""

    requests: int
    """Requests in a step."""
    tokens: int
    """Tokens computed in a step."""
    blocks: int
    """Blocks of the key-value cache."""

    def fits(self, used: Iterable[Capacity]) -> bool:
        """Return whether the sum of ``used`` is within this capacity."""
        return all(sum(part) <= room for room, *part in zip(self, *used, strict=True))


class PairQueue(Generic[R]):
    """Requests, which can be any objects, waiting to be started."""

    def __init__(self) -> None:
        self._single: dict[str, tuple[R, float]] = {}  # pair -> request and its deadline
        self._entries: deque[tuple[R, ...]] = deque()

    def __len__(self) -> int:
        """Count the requests."""
        return len(self._single) + sum(map(len, self._entries))

    def add(self, request: R, guided: GuidedRequest | None, now: float) -> None:
        """Add a request and its role in a guided pair, if any; ``now`` is in seconds."""
        if guided is None or not guided.needs_partner:
            self._entries.append((request,))
        elif guided.pair in self._single:
            self._entries.append((self._single.pop(guided.pair)[0], request))
        else:
            self._single[guided.pair] = (request, now + PAIR_TIMEOUT)

    def pop_ready(self, fits: Callable[[tuple[R, R]], bool], now: float) -> Iterator[R]:
        """Yield the requests that can start; the requests of a pair are adjacent.

        ``fits`` returns whether both requests of a pair can start now. It is called for one pair at
        a time, after everything yielded before has been started.
        """
        for name in [name for name, (_, deadline) in self._single.items() if deadline <= now]:
            self._entries.append((self._single.pop(name)[0],))
        while self._entries:
            entry = self._entries[0]
            if len(entry) == 2 and not fits((entry[0], entry[1])):
                return
            yield from self._entries.popleft()

    def remove(self, unwanted: Callable[[R], bool]) -> list[R]:
        """Remove and return requests; the remaining request of a pair leaves alone."""
        removed = [request for request, _ in self._single.values() if unwanted(request)]
        removed += [request for entry in self._entries for request in entry if unwanted(request)]
        self._single = {name: one for name, one in self._single.items() if not unwanted(one[0])}
        kept = (
            tuple(request for request in entry if not unwanted(request)) for entry in self._entries
        )
        self._entries = deque(entry for entry in kept if entry)
        return removed
