"""A vLLM scheduler that starts the two halves of a picture in one step.

Contract: chosen with `--scheduler-cls liquidmm.export.vllm_scheduler.PairScheduler`. vLLM's own
scheduler starts a request in the step after it came, so the halves of a pair, which come one after
the other, may start in two steps; the processor (`vllm_plugin`) then stops them. This one holds
them back (`pair_queue`) until both are there, fit into one step and have cache blocks to their end.
Everything else is vLLM's scheduler, which says of itself that its interface may change. Importing
this module needs vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from liquidmm.export.pair_queue import PairQueue, Room, blocks_of
from liquidmm.export.pairs import Half


class PairScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler behind a queue of pairs."""

    def __new__(cls, vllm_config: Any, **_: Any) -> PairScheduler:
        """Build on the asynchronous scheduler where the engine runs that way."""
        runs_ahead = vllm_config.scheduler_config.async_scheduling
        scheduler: PairScheduler = super().__new__(AsyncPairScheduler if runs_ahead else cls)
        return scheduler

    def __init__(self, **options: Any) -> None:
        """Take what vLLM's scheduler takes."""
        super().__init__(**options)
        self._held: PairQueue[Any] = PairQueue()

    def add_request(self, request: Any) -> None:
        """Hold a new request back until it may start."""
        if request.request_id in self.requests:  # more input of a streaming session
            super().add_request(request)
        else:
            self._held.add(request, _half(request), time.monotonic())

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        """Let in what may start, then plan the step as vLLM does."""
        for request in self._held.leave(self._fits, time.monotonic()):
            super().add_request(request)
        return super().schedule(*arguments, **options)

    def finish_requests(self, request_ids: str | Iterable[str] | None, *status: Any) -> Any:
        """End requests, those that are held back too; None ends all."""
        ids = {request_ids} if isinstance(request_ids, str) else request_ids
        ids = None if ids is None else set(ids)
        for request in self._held.remove(lambda held: ids is None or held.request_id in ids):
            super().add_request(request)
        return super().finish_requests(ids, *status)

    def get_request_counts(self) -> tuple[int, int]:
        """Count what is held back as waiting."""
        running, waiting = super().get_request_counts()
        return running, waiting + len(self._held)

    def _fits(self, pair: tuple[Any, Any]) -> bool:
        """Tell whether both halves can start in the next step and run to their end."""
        there = [*self.running, *self.waiting]
        if not there:
            return True  # it won't ever have more room
        wanted = sum(map(self._needs, [*there, *pair]), Room(rows=0, ids=0, blocks=0))
        return Room(
            rows=self.max_num_active_reqs,
            ids=self.max_num_scheduled_tokens,
            blocks=self.cache_config.num_gpu_blocks - 1,  # vLLM keeps one block empty
        ).holds(wanted)

    def _needs(self, request: Any) -> Room:
        """Give what a request takes of the next step and of the cache.

        A half is counted with all the blocks it will ever need, any other request with those it
        has then.
        """
        left = max(request.num_tokens - request.num_computed_tokens, 1)
        reached = request.num_computed_tokens + left
        if _half(request) is not None:
            reached = request.num_prompt_tokens + request.max_tokens
        groups = len(self.kv_cache_config.kv_cache_groups)
        return Room(rows=1, ids=left, blocks=blocks_of(reached, self.block_size, groups))


class AsyncPairScheduler(PairScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same for an engine that plans a step while the one before runs."""


def _half(request: Any) -> Half | None:
    return None if request.sampling_params is None else Half.of(request.sampling_params)
