"""Measurements in separate processes.

Each candidate of a comparison runs in a fresh process, so that memory, caches and settings of one
do not affect another, and is paused while another one is measured. A candidate is a function of a
`Pacer`: it sets itself up and then does one step per `pacer.wait()`. A round is timed from its
start to the end of its last step, everything between the steps included; setup is not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from liquidmm.errors import LiquidError
from liquidmm.runtime import resolve_device

_EXIT_TIMEOUT = 20.0
"""Seconds that a candidate has to end by itself."""
_PRELOAD = (
    "liquidmm.encode",
    "liquidmm.generate.engine",
    "liquidmm.train.setup",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
)
"""Modules to import once, before the processes of candidates are forked."""


class CandidateError(LiquidError):
    """A candidate that failed, ended early or was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Some steps of one candidate."""

    steps: int
    seconds: float
    counts: dict[str, float]
    """What the candidate counted."""
    memory: int | None
    """Peak bytes of its process, above its mark if it set one; None if unknown."""

    def rate(self, name: str) -> float:
        """Return what was counted per second."""
        return self.counts.get(name, 0) / self.seconds


class PeakMemory:
    """The peak memory of this process above a mark: allocated on a GPU, resident on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base: int | None = 0

    def mark(self) -> None:
        """Count from the current memory."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
        except OSError:
            self._base = None
        else:
            self._base = resident_memory()

    def peak(self) -> int | None:
        """Return the bytes; None if unknown."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = kernel_bytes("/proc/self/status", "VmHWM")
        return None if peak is None or self._base is None else max(0, peak - self._base)


def resident_memory() -> int | None:
    """Return the resident bytes of this process; None if unknown."""
    return kernel_bytes("/proc/self/status", "VmRSS")


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return kernel_bytes("/proc/meminfo", "MemAvailable")


def kernel_bytes(path: str, name: str) -> int | None:
    """Read an entry of the Linux kernel in bytes; None on other systems."""
    if not Path(path).is_file():
        return None
    text = Path(path).read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class Pacer:
    """A candidate's end of the pipe: starts its steps, counts, and stops the time."""

    def __init__(self, connection: Connection[Any, Any], device: torch.device) -> None:
        self.device = device
        self.memory = PeakMemory(device)
        self._connection = connection
        self._steps = self._left = 0
        self._start = 0.0
        self._counts: defaultdict[str, float] = defaultdict(float)

    def wait(self) -> bool:
        """Wait for the next step; False ends the candidate."""
        if self._left == 0:
            if self._steps:
                self._send_round()
            self._steps = self._left = self._receive_steps()
            self._start = time.perf_counter()
        self._left -= 1
        return self._steps > 0

    def count(self, **amounts: float) -> None:
        """Add to the counts of this round."""
        for name, amount in amounts.items():
            self._counts[name] += amount

    def _send_round(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._start
        memory, counts = self.memory.peak(), dict(self._counts)
        self._counts.clear()
        self._connection.send(
            Round(steps=self._steps, seconds=seconds, counts=counts, memory=memory)
        )

    def _receive_steps(self) -> int:
        try:
            return int(self._connection.recv())
        except EOFError:  # the main process is gone
            return 0


Candidate = Callable[[Pacer], None]
"""A picklable function, such as a `partial` of one at the top of a module."""


class Worker:
    """One candidate in its process; a context manager that ends it."""

    def __init__(self, candidate: Candidate, device: str) -> None:
        # A process forked from one with the slow imports starts at once. CUDA does not survive a
        # fork, and an imported module may have initialized it.
        method = "spawn" if device.startswith("cuda") else "forkserver"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(list(_PRELOAD))
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_run, args=(other, candidate, device))
        self.process.start()
        other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        if error is None:
            self.process.join(_EXIT_TIMEOUT)
        self.process.terminate()
        self.process.join()

    def run(self, steps: int = 1) -> Round:
        """Run some steps and wait for them.

        Raises:
            CandidateError: The process failed, ended or was killed.
        """
        with contextlib.suppress(ConnectionError):  # its last message can still be read
            self._connection.send(steps)
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = f"was killed by signal {-code}" if code and code < 0 else f"ended with {code}"
            raise CandidateError(f"the process {how}") from None
        if isinstance(answer, str):
            raise CandidateError(answer)
        assert isinstance(answer, Round)
        return answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rounds of each candidate that finished, and why the others did not."""

    rounds: dict[str, list[Round]]
    failures: dict[str, str]

    def rate(self, name: str, count: str) -> float | None:
        """Return the median over the rounds of what was counted per second; None if it failed."""
        rounds = self.rounds.get(name)
        return statistics.median(one.rate(count) for one in rounds) if rounds else None

    def step_seconds(self, name: str) -> float:
        """Return the median time of a step."""
        return statistics.median(one.seconds / one.steps for one in self.rounds[name])

    def total(self, name: str, count: str) -> float:
        """Return what was counted in all rounds."""
        return sum(one.counts.get(count, 0) for one in self.rounds[name])


def compare(
    candidates: Mapping[str, Candidate],
    device: str,
    *,
    seconds: float,
    rounds: int,
    warmup: int = 2,
) -> Comparison:
    """Measure candidates in interleaved rounds, so that machine noise affects all of them equally.

    Args:
        candidates: Candidates by name.
        device: Device to synchronize and whose memory is measured.
        seconds: Approximate time of all rounds together.
        rounds: Maximum rounds of each candidate; fewer if a step takes too long.
        warmup: Steps before the rounds. They are not counted; the last one sets the round length.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(candidate, device))
            for name, candidate in candidates.items()
        }
        return _interleave(workers, seconds, rounds, warmup)


def _interleave(
    workers: Mapping[str, Worker], seconds: float, rounds: int, warmup: int
) -> Comparison:
    result = Comparison({}, {})
    step: dict[str, float] = {}

    def run(name: str, steps: int) -> Round | None:
        try:
            return workers[name].run(steps)
        except CandidateError as error:
            result.failures[name] = str(error)
            result.rounds.pop(name, None)
            return None

    for name in workers:
        for _ in range(warmup):
            if name not in result.failures and (done := run(name, 1)):
                step[name] = done.seconds
                result.rounds[name] = []
    total = sum(step[name] for name in result.rounds)
    rounds = max(1, min(rounds, int(seconds / max(1e-9, total))))
    share = seconds / rounds / max(1, len(result.rounds))
    for _ in range(rounds):
        for name in list(result.rounds):
            if done := run(name, max(1, round(share / step[name]))):
                result.rounds[name].append(done)
    return result


def run_once(candidate: Candidate, device: str) -> Round:
    """Run one step of a candidate in a fresh process.

    Raises:
        CandidateError: The process failed, ended or was killed.
    """
    with Worker(candidate, device) as worker:
        return worker.run()


def _run(connection: Connection[Any, Any], candidate: Candidate, device: str) -> None:
    """Run a candidate; the main function of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    os.dup2(2, 1)  # stdout is for the result; some libraries print to it
    try:
        candidate(Pacer(connection, resolve_device(device)))
    except LiquidError as error:
        connection.send(str(error))
    except Exception as error:  # noqa: BLE001 - reported by the main process
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        connection.send(f"{type(error).__name__}: {first}")
