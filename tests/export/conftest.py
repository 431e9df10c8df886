"""Requests as an engine knows them, and an engine."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liquidmm.export.vllm_backends import Completion, CompletionRequest
from liquidmm.export.vllm_pairs import (
    CODES,
    GUIDANCE,
    PAIR,
    ROLE,
    SEED,
    ActiveRequest,
    GuidedRequest,
    PairSampler,
)
from liquidmm.model.checkpoint import Checkpoint


@pytest.fixture
def settings() -> Callable[..., SimpleNamespace]:
    """Make the settings of a conditional request; None drops an extra argument."""

    def make(**changes: Any) -> SimpleNamespace:
        extra = {PAIR: "a", ROLE: "conditional", SEED: 5, GUIDANCE: 3.0, CODES: 16}
        fields = {"n": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        extra |= {key: value for key, value in changes.items() if key in extra}
        fields |= {key: value for key, value in changes.items() if key not in extra}
        kept = {key: value for key, value in extra.items() if value is not None}
        return SimpleNamespace(extra_args=kept, **fields)

    return make


class FakeEngine:
    """Continues prompts in one batch with transformers, greedily, and knows nothing of images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = checkpoint.model
        self.sampler = PairSampler(checkpoint.vocabulary)
        self.requests: list[CompletionRequest] = []
        self.messages: list[str] = []
        self.lost: set[int] = set()
        """Indices of requests that are never started."""

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        self.requests += requests
        ids: list[list[int]] = [list(request.prompt) for request in requests]
        running = [place for place in range(len(requests)) if place not in self.lost]
        for step in range(max(request.max_tokens for request in requests)):
            running = running[1:] + running[:1]
            self._step(requests, ids, running, step)
            running = [
                place
                for place in running
                if ids[place][-1] not in requests[place].stop
                and step + 1 < requests[place].max_tokens
            ]
        return [
            tuple(all_ids[len(request.prompt) :])
            for request, all_ids in zip(requests, ids, strict=True)
        ]

    def _step(
        self,
        requests: Sequence[CompletionRequest],
        ids: list[list[int]],
        running: list[int],
        step: int,
    ) -> None:
        if not running:
            return
        with torch.no_grad():
            logits = torch.stack(
                [self.model(torch.tensor([ids[place]])).logits[0, -1] for place in running]
            )
        rows = []
        for row, place in enumerate(running):
            logits[row, list(requests[place].forbidden)] = -torch.inf
            settings = SimpleNamespace(extra_args=requests[place].extra, n=1)
            vars(settings).update(requests[place].fields())
            if (request := GuidedRequest.from_settings(settings)) is not None:
                rows.append(ActiveRequest(row=row, request=request, generated=step))
        self.messages += self.sampler.apply(logits, rows)
        for place, token in zip(running, logits.argmax(-1).tolist(), strict=True):
            ids[place].append(token)


@pytest.fixture
def engine(checkpoint: Checkpoint) -> FakeEngine:
    """A new engine for each test."""
    return FakeEngine(checkpoint)
