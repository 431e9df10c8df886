"""Requests as an engine knows them, and an engine."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liquidmm.export.pairs import CODES, GUIDANCE, PAIR, ROLE, SEED, Half, PairGuide, Row
from liquidmm.export.vllm_backends import Answer, Completion
from liquidmm.model.checkpoint import Checkpoint


@pytest.fixture
def settings() -> Callable[..., SimpleNamespace]:
    """Make the settings of a conditional half; None leaves an extra argument out."""

    def make(**changes: Any) -> SimpleNamespace:
        extra = {PAIR: "a", ROLE: "conditional", SEED: 5, GUIDANCE: 3.0, CODES: 16}
        fields = {"n": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        extra |= {key: value for key, value in changes.items() if key in extra}
        fields |= {key: value for key, value in changes.items() if key not in extra}
        kept = {key: value for key, value in extra.items() if value is not None}
        return SimpleNamespace(extra_args=kept, **fields)

    return make


class FakeEngine:
    """Continues prompts in one batch with transformers, greedily, and knows nothing of pictures."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = checkpoint.model
        self.guide = PairGuide(checkpoint.vocabulary)
        self.requests: list[Completion] = []
        self.messages: list[str] = []
        self.lost: set[int] = set()
        """Requests that are never started."""

    def complete(self, requests: Sequence[Completion]) -> list[Answer]:
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
            Answer(ids=tuple(all_ids[len(request.prompt) :]))
            for request, all_ids in zip(requests, ids, strict=True)
        ]

    def _step(
        self, requests: Sequence[Completion], ids: list[list[int]], running: list[int], step: int
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
            if (half := Half.of(settings)) is not None:
                rows.append(Row(place=row, half=half, drawn=step))
        self.messages += self.guide.apply(logits, rows)
        for place, token in zip(running, logits.argmax(-1).tolist(), strict=True):
            ids[place].append(token)


@pytest.fixture
def engine(checkpoint: Checkpoint) -> FakeEngine:
    """One of its own for each test."""
    return FakeEngine(checkpoint)
