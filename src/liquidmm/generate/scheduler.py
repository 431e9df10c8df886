"""The choice of requests that run together, and of when the host reads sampled tokens.

Requests start in order of arrival as soon as enough slots are free. The host reads sampled tokens
only when it must: for every token of a text, at the end of an image, and for a preview.
"""

from __future__ import annotations

from collections import deque

from liquidmm.errors import LiquidError
from liquidmm.generate.batch import Batch
from liquidmm.generate.outputs import End
from liquidmm.generate.state import ModelSpec, RequestHandle, SequenceState


class Scheduler:
    """Runs requests on one batch, which it owns."""

    def __init__(self, batch: Batch, spec: ModelSpec, slots: int) -> None:
        """Start without requests; at most ``slots`` slots are in use at once."""
        self._batch = batch
        self._spec = spec
        self._slots = slots
        self._waiting: deque[RequestHandle] = deque()
        self._running: list[SequenceState] = []
        self._uncollected = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    def add(self, handle: RequestHandle) -> None:
        """Queue a checked request."""
        self._waiting.append(handle)

    def drop(self, handle: RequestHandle) -> None:
        """Remove a waiting or running request."""
        self._waiting = deque(one for one in self._waiting if one is not handle)
        for sequence in [one for one in self._running if one.handle is handle]:
            self._collect()
            if sequence in self._running:  # it may just have ended
                self._remove(sequence)

    def step(self) -> None:
        """Sample one token for every running request.

        Raises:
            CheckpointError: The model's logits contain NaN; all running requests failed.
        """
        try:
            self._admit()
            if self._running:
                self._batch.advance()
                self._uncollected += 1
                if self._uncollected >= min(one.steps_before_sync for one in self._running):
                    self._collect()
                for sequence in self._running:
                    sequence.handle.sampled = sequence.steps
        except BaseException as error:
            self._fail(error)
            raise

    def _admit(self) -> None:
        while self._waiting:
            sequence = SequenceState(self._waiting[0], self._spec)
            if self._running and self._batch.num_slots + sequence.num_slots > self._slots:
                return
            self._collect()
            self._waiting.popleft()
            self._running.append(sequence)
            self._batch.add(sequence)

    def _collect(self) -> None:
        sampled = self._batch.collect()
        self._uncollected = 0
        for sequence in list(self._running):
            if sequence in sampled:
                sequence.accept(sampled[sequence])
                self._update(sequence)

    def _update(self, sequence: SequenceState) -> None:
        """Change what a sequence samples, or end it, depending on its last token."""
        if sequence.image_complete:
            self._batch.close_image(sequence)
            sequence.check_limits()
        elif sequence.image_requested:
            self._batch.open_image(sequence)
            sequence.start_image()
        if sequence.finish is not None:
            sequence.handle.sampled = sequence.steps
            sequence.handle.end(End(finish=sequence.finish))
            self._remove(sequence)

    def _remove(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        self._batch.remove(sequence)

    def _fail(self, error: BaseException) -> None:
        """End all running requests; waiting requests are not affected."""
        reported = error if isinstance(error, LiquidError) else None
        for sequence in self._running:
            sequence.handle.end(End(finish="error", error=reported))
        self._running, self._uncollected = [], 0
        self._batch.clear()
