"""Decoding steps captured as CUDA graphs, which launch a whole step at once.

A step is captured only after a few runs, so small images never pay for a capture. Steps with equal
signatures share a graph, even across requests. A graph does not change the results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from liquidmm.generate.step import DecodeStep, Sampled

_MIN_LENGTH = 256
"""Attended lengths are rounded up to powers of two, at least this; each length needs a graph."""
_RUNS_BEFORE_CAPTURE = 4
_MAX_STEPS = 16
"""Maximum number of steps to keep; the oldest are dropped first."""


@dataclass(slots=True, eq=False)
class _Captured:
    """A step and its graphs by attended length."""

    step: DecodeStep
    runs: int = 0
    graphs: dict[int, tuple[Any, Sampled]] = field(default_factory=dict)


class CudaGraphs:
    """The captured steps of one backend."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], _Captured] = {}
        self._reserved = (0, 0)
        self._pool: Any = None

    def get_or_add(self, step: DecodeStep) -> DecodeStep:
        """Update and return the kept step with the same signature, or keep and return this one."""
        kept = self._kept.get(step.signature)
        if kept is None:
            while len(self._kept) >= _MAX_STEPS:
                del self._kept[next(iter(self._kept))]
            self._kept[step.signature] = _Captured(step)
            return step
        kept.step.copy_from(step)
        return kept.step

    def run(self, step: DecodeStep, length: int, reserved: tuple[int, int]) -> Sampled:
        """Run a step that `get_or_add` returned, with a graph if possible.

        Args:
            step: The step.
            length: Cache positions that must be attended to.
            reserved: Slots and positions of the cache; the cache has moved if they grew.
        """
        if reserved != self._reserved:
            for kept in self._kept.values():
                kept.graphs.clear()
            self._reserved = reserved
        kept = self._kept[step.signature]
        kept.runs += 1
        kv_length = _MIN_LENGTH
        while kv_length < length:
            kv_length *= 2
        kv_length = min(kv_length, reserved[1])
        if kept.runs <= _RUNS_BEFORE_CAPTURE:
            return step.run(kv_length, noise_ahead=False)
        if kv_length not in kept.graphs:
            kept.graphs[kv_length] = self.capture(step, kv_length)
        graph, sampled = kept.graphs[kv_length]
        graph.replay()
        # The next replay overwrites these tensors.
        return [(columns.clone(), valid.clone()) for columns, valid in sampled]

    def capture(self, step: DecodeStep, kv_length: int) -> tuple[Any, Sampled]:
        """Capture a step; this computes nothing, so the step's tensors keep their values.

        Returns:
            An object whose ``replay`` runs the step, and the tensors it writes.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(step.backend.device)
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool):
            sampled = step.run(kv_length, noise_ahead=False)
        self._pool = self._pool or graph.pool()
        return graph, sampled
