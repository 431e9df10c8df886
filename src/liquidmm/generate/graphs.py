"""Passes recorded as CUDA graphs: what a pass launches is launched at once.

Contract: opt-in, and for CUDA only. A pass is recorded once its plan has run some passes, so that a
single picture of a few codes never pays for it; a plan of equal signature reuses the recording, and
so does every later picture of the same batch. The result is that of the pass run as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liquidmm.generate.decoders.decoder import Decoder
from liquidmm.generate.plan import Plan

_SPANS = 256
"""Attended positions are rounded up to a power of two from this on: each needs a recording."""
_PASSES_BEFORE = 4
"""Passes that a plan runs before it is recorded."""
_PLANS = 16
"""Plans that are kept; the oldest ones go first."""

Drawn = list[tuple[Tensor, Tensor]]


@dataclass(slots=True, eq=False)
class _Recorded:
    """One plan and its recordings by span."""

    plan: Plan
    passes: int = 0
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Drawn]] = field(default_factory=dict)


class Graphs:
    """Recordings of one decoder."""

    def __init__(self) -> None:
        """Begin without any."""
        self._kept: dict[tuple[object, ...], _Recorded] = {}
        self._room = (0, 0)
        self._pool: Any = None

    def settle(self, plan: Plan) -> Plan:
        """Give the plan to run in place of a new one: the kept one of its kind, if there is one."""
        kept = self._kept.get(plan.signature)
        if kept is None:
            while len(self._kept) >= _PLANS:
                del self._kept[next(iter(self._kept))]
            self._kept[plan.signature] = _Recorded(plan)
            return plan
        kept.plan.take_over(plan)
        return kept.plan

    def run(self, plan: Plan, decoder: Decoder, longest: int, room: tuple[int, int]) -> Drawn:
        """Make a pass of a settled plan, recorded or as it is.

        Args:
            plan: What `settle` gave.
            decoder: The language model.
            longest: Positions that must be attended to.
            room: Rows and positions of the cache; where they have grown, it has moved.

        Returns:
            What `Plan.run` returns.
        """
        if room != self._room:
            for kept in self._kept.values():
                kept.graphs.clear()
            self._room = room
        kept = self._kept[plan.signature]
        kept.passes += 1
        span = _SPANS
        while span < longest:
            span *= 2
        span = min(span, room[1])
        if kept.passes <= _PASSES_BEFORE:
            return plan.run(decoder, span, ahead=False)
        if span not in kept.graphs:
            kept.graphs[span] = self._record(plan, decoder, span)
        graph, drawn = kept.graphs[span]
        graph.replay()
        # The next replay writes to the same tensors.
        return [(columns.clone(), good.clone()) for columns, good in drawn]

    def _record(
        self, plan: Plan, decoder: Decoder, span: int
    ) -> tuple[torch.cuda.CUDAGraph, Drawn]:
        """Record a pass; recording computes nothing, so the plan's tensors stay as they are."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(decoder.device)
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool):
            drawn = plan.run(decoder, span, ahead=False)
        self._pool = self._pool or graph.pool()
        return graph, drawn
