"""Requests that run together: who begins, what each one draws next, who has ended.

Contract: every answer is a state machine: text until boi, exactly h x w codes, eoi, text again. A
request begins as soon as there are rows for it, in the order of arrival, while others run; what it
is answered doesn't depend on them. The host looks at drawn ids when it has to: at each id of a
text, at the end of a picture, and where a preview is due.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from liquidmm.errors import LiquidError
from liquidmm.generate.batch import Batch
from liquidmm.generate.plan import Lane
from liquidmm.generate.requests import (
    End,
    Finish,
    ImageRequest,
    ImageRows,
    ImageStep,
    Request,
    Step,
    TextRequest,
    TextStep,
)
from liquidmm.generate.speculate import Window
from liquidmm.vocabulary import Vocabulary

_TEXT_ROOM = 64
"""Positions that are made room for at once when a text begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all requests to one model have in common."""

    vocabulary: Vocabulary
    """Where text and codes lie."""
    unconditional: tuple[int, ...]
    """Prompt of guidance, up to and including boi."""
    stop: frozenset[int]
    """Ids that end a text."""
    context: int
    """Ids that a sequence can hold."""
    rows: int
    """Rows that may be taken at once."""
    window: int
    """Codes that a lone picture may draw in a pass; below 2 it draws one."""


class Answer:
    """What has come of one request."""

    def __init__(self, request: Request) -> None:
        """Begin with nothing."""
        self.request = request
        self.steps: deque[Step] = deque()
        """Steps that nobody has taken yet."""
        self.done = False
        """Whether the last step was the end."""
        self.drawn = 0
        """Ids drawn so far."""


class Running:
    """The state of one request in the batch."""

    def __init__(self, answer: Answer, settings: Settings) -> None:
        """Begin with nothing drawn."""
        request = answer.request
        self.answer = answer
        self._settings = settings
        self._left = request.max_tokens if isinstance(request, TextRequest) else 0
        self._ids: list[int] = []
        self.grid = request.grid or (0, 0)
        self.codes: list[int] = []
        """Codes of the picture that is being drawn."""
        self._shown = 0
        self.finish: Finish | None = None
        """Why it has ended."""
        self.window: Window | None = None
        """Its drafts, where it is drawn speculatively."""
        picture = isinstance(request, ImageRequest)
        self.lane = Lane(
            sampling=request.sampling,
            seed=request.seed,
            part="codes" if picture else "text",
            rows=[],
            lengths=[],
            feed=[],
            guided=picture and request.sampling.guidance not in (0, 1),
        )

    @property
    def prompt(self) -> tuple[int, ...]:
        """Ids of the first row."""
        request = self.answer.request
        if isinstance(request, ImageRequest) and request.sampling.guidance == 0:
            return self._settings.unconditional
        return request.prompt

    @property
    def pair(self) -> bool:
        """Whether a second row is needed, now or later."""
        request = self.answer.request
        if isinstance(request, ImageRequest):
            return self.lane.guided
        return request.grid is not None and request.picture_sampling.guidance != 1

    @property
    def room(self) -> int:
        """Positions that it is sure to need, about."""
        request = self.answer.request
        if isinstance(request, ImageRequest):
            return len(request.prompt) + self.grid[0] * self.grid[1]
        return min(
            len(request.prompt) + min(request.max_tokens, _TEXT_ROOM), self._settings.context
        )

    @property
    def pending(self) -> int:
        """Codes that may be drawn before the host has to look; 0 in a text."""
        if self.lane.part == "text":
            return 0
        left = self.grid[0] * self.grid[1] - len(self.codes)
        rows = self.answer.request.preview_rows
        due = (self._shown + rows) * self.grid[1] - len(self.codes)
        return min(left, due) if rows else left

    def may_open(self) -> bool:
        """Tell whether a picture that begins now fits the context."""
        request = self.answer.request
        if isinstance(request, ImageRequest) or request.grid is None:
            return False
        # One id each for boi, eoi and the text that must be able to follow.
        codes = self.grid[0] * self.grid[1]
        return self.lane.lengths[0] + 1 + codes + 3 <= self._settings.context

    def take(self, columns: list[int]) -> None:
        """Take what was drawn, in order."""
        if self.lane.part == "codes":
            self.codes += columns
            self._show()
        for column in columns if self.lane.part == "text" else ():
            self._write(column)

    def open_picture(self, batch: Batch) -> None:
        """Go on with the codes of a picture; boi has been drawn."""
        request = self.answer.request
        assert isinstance(request, TextRequest)
        batch.changed()
        self.lane.part, self.lane.sampling = "codes", request.picture_sampling
        self.codes, self._shown = [], 0
        if self.pair:
            batch.pair_up(self.lane)

    def close_picture(self, batch: Batch) -> None:
        """Go on with text behind eoi; the last code has been drawn."""
        lane = self.lane
        batch.changed()
        batch.append(lane, [lane.feed[0]], at=lane.lengths[0])
        lane.lengths[0] += 1
        lane.feed[0] = self._settings.vocabulary.eoi
        lane.lengths[1:] = [0] * len(lane.lengths[1:])
        lane.part, lane.sampling, lane.guided = "text", self.answer.request.sampling, False
        self._ids = []
        self._limit()

    @property
    def opens(self) -> bool:
        """Whether a picture begins now."""
        return self.lane.part == "text" and self._ids[-1:] == [self._settings.vocabulary.boi]

    @property
    def closes(self) -> bool:
        """Whether a picture inside a text has just ended."""
        whole = len(self.codes) == self.grid[0] * self.grid[1]
        return self.lane.part == "codes" and whole and self.finish is None

    def _write(self, token: int) -> None:
        if token in self._settings.stop:
            self.finish = "stop"
            return
        self._ids.append(token)
        self._left -= 1
        if token == self._settings.vocabulary.boi:
            return
        self.answer.steps.append(TextStep(id=token))
        self._limit()

    def _limit(self) -> None:
        """End a text that has no more room."""
        if self._left == 0 or self.lane.lengths[0] + 1 >= self._settings.context:
            self.finish = "length"

    def _show(self) -> None:
        height, width = self.grid
        rows = len(self.codes) // width
        if len(self.codes) == height * width:
            codes = torch.tensor(self.codes).view(height, width)
            self.answer.steps.append(ImageStep(codes=codes))
            if isinstance(self.answer.request, ImageRequest):
                self.finish = "stop"
        elif self.answer.request.preview_rows and rows >= self._shown + (
            self.answer.request.preview_rows
        ):
            self._shown = rows
            codes = torch.tensor(self.codes[: rows * width]).view(rows, width)
            self.answer.steps.append(ImageRows(codes=codes))


class Scheduler:
    """Answers requests over one batch."""

    def __init__(self, batch: Batch, settings: Settings) -> None:
        """Begin without requests.

        Args:
            batch: Where they run; nobody else uses it.
            settings: What all requests have in common.
        """
        self._batch = batch
        self._settings = settings
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._ahead = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    def add(self, answer: Answer) -> None:
        """Take a request that has been checked."""
        self._waiting.append(Running(answer, self._settings))

    def drop(self, answer: Answer) -> None:
        """Forget a request, wherever it is; its answer stays as it is."""
        self._waiting = deque(one for one in self._waiting if one.answer is not answer)
        for one in [one for one in self._running if one.answer is answer]:
            self._collect()
            if one in self._running:  # it may just have come to its end
                self._leave(one)

    def step(self) -> None:
        """Let everything that runs draw once.

        Raises:
            CheckpointError: The model's scores hold NaN; everything that ran has failed.
        """
        try:
            self._admit()
            if self._running:
                self._draw()
                for one in self._running:
                    one.answer.drawn = one.lane.step
        except BaseException as error:
            self._fail(error)
            raise

    def _draw(self) -> None:
        first = self._running[0]
        alone = len(self._running) == 1 and self._settings.window > 1 and first.lane.part == "codes"
        if alone and not self._ahead:
            first.window = first.window or Window(
                self._settings.window, first.grid, self._settings.vocabulary
            )
            first.take(self._batch.speculate(first.window, first.codes))
            self._settle(first)
            return
        for one in self._running:
            if one.lane.part == "text" and one.lane.may_open != one.may_open():
                one.lane.may_open = one.may_open()
                self._batch.changed()
        self._batch.advance()
        self._ahead += 1
        if self._ahead >= min(one.pending for one in self._running):
            self._collect()

    def _collect(self) -> None:
        drawn = {id(lane): columns for lane, columns in self._batch.collect()}
        self._ahead = 0
        for one in list(self._running):
            if id(one.lane) in drawn:
                one.take(drawn[id(one.lane)])
                self._settle(one)

    def _settle(self, one: Running) -> None:
        """Do what an answer's last id asks for."""
        if one.closes:
            one.close_picture(self._batch)
        elif one.opens and one.finish is None:
            one.open_picture(self._batch)
        if one.finish is not None:
            one.answer.steps.append(End(finish=one.finish))
            one.answer.done, one.answer.drawn = True, one.lane.step
            self._leave(one)

    def _leave(self, one: Running) -> None:
        self._running.remove(one)
        self._batch.remove(one.lane)

    def _admit(self) -> None:
        while self._waiting:
            one = self._waiting[0]
            if self._running and self._batch.rows + (2 if one.pair else 1) > self._settings.rows:
                return
            if self._ahead:
                self._collect()
                continue
            self._waiting.popleft()
            self._running.append(one)
            self._batch.add(one.lane, one.prompt, one.room, pair=one.pair)

    def _fail(self, error: BaseException) -> None:
        """End everything that runs; what waits isn't touched."""
        told = error if isinstance(error, LiquidError) else None
        for one in self._running:
            one.answer.steps.append(End(finish="error", error=told))
            one.answer.done = True
        self._running, self._ahead = [], 0
        self._batch.clear()
