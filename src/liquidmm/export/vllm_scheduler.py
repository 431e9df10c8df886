"""A vLLM scheduler that starts both requests of a guided pair in one step.

Select it with `--scheduler-cls liquidmm.export.vllm_scheduler.PairScheduler`. vLLM's own scheduler
starts a request in the step after its arrival, so the requests of a pair may start in different
steps; the logits processor (`vllm_plugin`) then stops them. This scheduler queues them
(`vllm_pair_queue`) until both have arrived, fit into one step and have enough cache blocks. The
rest is vLLM's scheduler, whose interface may change. Importing this module requires vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from liquidmm.export.vllm_pair_queue import Capacity, PairQueue
from liquidmm.export.vllm_pairs import GuidedRequest


class PairScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler behind a queue of pairs."""

    def __new__(cls, vllm_config: Any, **_: Any) -> PairScheduler:
        """Use the asynchronous scheduler if the engine uses it."""
        is_async = vllm_config.scheduler_config.async_scheduling
        scheduler: PairScheduler = super().__new__(AsyncPairScheduler if is_async else cls)
        return scheduler

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._queue: PairQueue[Any] = PairQueue()

    def add_request(self, request: Any) -> None:
        """Queue a new request until it can start."""
        if request.request_id in self.requests:  # more input for a streaming session
            super().add_request(request)
        else:
            self._queue.add(request, _guided_request(request), time.monotonic())

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        """Admit the requests that can start, then plan the step like vLLM."""
        for request in self._queue.pop_ready(self._fits, time.monotonic()):
            super().add_request(request)
        return super().schedule(*arguments, **options)

    def finish_requests(self, request_ids: str | Iterable[str] | None, *status: Any) -> Any:
        """Finish requests, including queued ones; None finishes all."""
        ids = {request_ids} if isinstance(request_ids, str) else request_ids
        ids = None if ids is None else set(ids)
        for request in self._queue.remove(lambda queued: ids is None or queued.request_id in ids):
            super().add_request(request)
        return super().finish_requests(ids, *status)

    def get_request_counts(self) -> tuple[int, int]:
        """Count queued requests as waiting."""
        running, waiting = super().get_request_counts()
        return running, waiting + len(self._queue)

    def _fits(self, pair: tuple[Any, Any]) -> bool:
        """Return whether both requests can start in the next step and run to their end."""
        present = [*self.running, *self.waiting]
        if not present:
            return True  # there will never be more free space
        return Capacity(
            requests=self.max_num_active_reqs,
            tokens=self.max_num_scheduled_tokens,
            blocks=self.cache_config.num_gpu_blocks - 1,  # vLLM keeps one block empty
        ).fits(self._needs(request) for request in (*present, *pair))

    def _needs(self, request: Any) -> Capacity:
        """Return the capacity of the next step and of the cache that a request uses.

        A request of a pair counts all the blocks it will ever need; any other request counts the
        blocks it has after the step.
        """
        remaining = max(request.num_tokens - request.num_computed_tokens, 1)
        length = request.num_computed_tokens + remaining
        if _guided_request(request) is not None:
            length = request.num_prompt_tokens + request.max_tokens
        groups = len(self.kv_cache_config.kv_cache_groups)
        blocks = -(-length // self.block_size) * groups
        return Capacity(requests=1, tokens=remaining, blocks=blocks)


class AsyncPairScheduler(PairScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same for an engine that plans a step while the previous one runs."""


def _guided_request(request: Any) -> GuidedRequest | None:
    params = request.sampling_params
    return None if params is None else GuidedRequest.from_settings(params)
