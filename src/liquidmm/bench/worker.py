"""Measurements in processes of their own, which take turns.

Contract: each side of a comparison runs in a fresh process, so that neither's memory, caches and
settings touch the other's, and it stands still while another one is measured. A side is a function
of a `Pacer` and its own arguments: it sets itself up and then works a step each time that the pacer
says go. A lap is timed from the word go to the end of its last step, with all that lies between the
steps; setting up is outside.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from liquidmm.bench.memory import PeakMemory
from liquidmm.errors import LiquidError
from liquidmm.runtime import resolve_device

_PATIENCE = 20.0
"""Seconds that a side has to end by itself."""


class EndedError(LiquidError):
    """A side that ended before its time; the text says how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lap:
    """Some steps of one side."""

    steps: int
    """How many."""
    seconds: float
    """How long they took."""
    counts: dict[str, float]
    """What the side counted in them."""
    memory: int | None
    """Most bytes its process has held so far, from its mark where it set one; None: unknown."""

    def rate(self, name: str) -> float:
        """Give what was counted for each second."""
        return self.counts.get(name, 0) / self.seconds


class Pacer:
    """Tells a side when to work, counts with it and stops the time."""

    def __init__(self, connection: Connection[Any, Any], device: torch.device) -> None:
        """Take the side's end of the pipe."""
        self.device = device
        self.memory = PeakMemory(device)
        self._connection = connection
        self._steps = self._left = 0
        self._began = 0.0
        self._counts: defaultdict[str, float] = defaultdict(float)

    def go(self) -> bool:
        """Wait for the word to do one more step; False ends the work."""
        if self._left == 0:
            if self._steps:
                self._finish_lap()
            self._steps = self._left = self._next_lap()
            self._began = time.perf_counter()
        self._left -= 1
        return self._steps > 0

    def count(self, **amounts: float) -> None:
        """Add to what is counted in this lap."""
        for name, amount in amounts.items():
            self._counts[name] += amount

    def _finish_lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._began
        lap = Lap(
            steps=self._steps,
            seconds=seconds,
            counts=dict(self._counts),
            memory=self.memory.peak(),
        )
        self._counts.clear()
        self._connection.send(lap)

    def _next_lap(self) -> int:
        try:
            return int(self._connection.recv())
        except EOFError:  # the other process is gone
            return 0


Side = Callable[..., None]
"""A function of a `Pacer` and arguments, at the top of a module: it is pickled."""


class Worker:
    """One side in its process; a context manager that ends it."""

    def __init__(self, side: Side, device: str, *arguments: Any) -> None:
        """Start the process.

        Args:
            side: What it does.
            device: Device its pacer synchronizes and measures.
            *arguments: Given to the side after the pacer.
        """
        # A process forked from one that has imported what takes long starts at once; CUDA doesn't
        # outlive a fork, and what is imported may have asked for it.
        method = "spawn" if device.startswith("cuda") else "forkserver"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([side.__module__, "transformers.models.llama"])
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_run, args=(other, side, device, arguments))
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process: at its next turn, or at once after an error."""
        self._connection.close()
        if error is None:
            self._process.join(_PATIENCE)
        self._process.terminate()
        self._process.join()

    def lap(self, steps: int = 1) -> Lap:
        """Let the side do some steps, and wait for them.

        Args:
            steps: How many, at least 1.

        Returns:
            What came of them.

        Raises:
            EndedError: The process failed, ended by itself or was killed.
        """
        assert steps > 0, "a lap has steps"
        with contextlib.suppress(ConnectionError):  # what it said last can still be read
            self._connection.send(steps)
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            how = f"was killed by signal {-code}" if code and code < 0 else f"ended with {code}"
            raise EndedError(f"its process {how}") from None
        if isinstance(answer, str):
            raise EndedError(answer)
        assert isinstance(answer, Lap)
        return answer


def alternate(
    workers: Mapping[str, Worker], *, seconds: float, rounds: int, warm: int = 2
) -> tuple[dict[str, list[Lap]], dict[str, str]]:
    """Let sides work by turns, so that a slow minute of the machine meets all of them.

    Args:
        workers: The sides by name.
        seconds: Time for all laps that count, about.
        rounds: Laps of each side, at most; fewer where a step is too long for them.
        warm: Steps before; they are left out, and their time decides how long a lap is.

    Returns:
        The laps of each side that came to the end, and why the others didn't.
    """
    step: dict[str, float] = {}
    ended: dict[str, str] = {}
    laps: dict[str, list[Lap]] = {}

    def lap(name: str, steps: int) -> Lap | None:
        try:
            return workers[name].lap(steps)
        except EndedError as error:
            ended[name] = str(error)
            laps.pop(name, None)
            return None

    for name in workers:
        for _ in range(warm):  # the last one is the fastest: it has no start in it
            if name not in ended and (done := lap(name, 1)):
                step[name] = done.seconds
                laps[name] = []
    rounds = max(1, min(rounds, int(seconds / max(1e-9, sum(step[name] for name in laps)))))
    share = seconds / rounds / max(1, len(laps))
    for _ in range(rounds):
        for name in list(laps):
            if done := lap(name, max(1, round(share / step[name]))):
                laps[name].append(done)
    return laps, ended


def median_rate(laps: list[Lap], name: str) -> float:
    """Give the median over laps of what was counted for each second."""
    return statistics.median(lap.rate(name) for lap in laps)


def _run(
    connection: Connection[Any, Any], side: Side, device: str, arguments: tuple[Any, ...]
) -> None:
    """The whole life of a side's process."""
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # stdout carries the result of the command; libraries that print to it must not.
    os.dup2(2, 1)
    try:
        side(Pacer(connection, resolve_device(device)), *arguments)
    except LiquidError as error:
        connection.send(str(error))
    except Exception as error:  # noqa: BLE001 - told to the first process
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        connection.send(f"{type(error).__name__}: {first}")
