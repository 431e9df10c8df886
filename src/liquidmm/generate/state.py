"""One running request: its tokens so far, and its slots in the KV cache.

A request is a state machine: text until boi, exactly h x w codes, eoi, and text again. `accept`
turns sampled tokens into events; only `Batch` writes the attributes that describe the cache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch

from liquidmm.generate.outputs import End, Event, Finish, ImageRows, ImageStep, TextStep
from liquidmm.generate.requests import ImageRequest, TokenRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.vocabulary import Vocabulary

Target = Literal["text", "codes"]
"""What is sampled: text tokens, or the codes of an image."""

_TEXT_ROOM = 64
"""Cache positions reserved when a text begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What the engine needs to know about the model's tokens."""

    vocabulary: Vocabulary
    """Token ids of text and codes."""
    unconditional: tuple[int, ...]
    """Unconditional prompt for guidance, up to and including boi."""
    stop: frozenset[int]
    """Tokens that end a text."""
    context: int
    """Maximum length of a sequence."""


@dataclass(kw_only=True, slots=True, eq=False)
class RequestHandle:
    """A submitted request and its unread events."""

    request: TokenRequest
    index: int = 0
    """Index among the requests it was submitted with."""
    events: deque[Event] = field(default_factory=deque)
    """Unread events, in order."""
    done: bool = False
    """Whether all events have been added."""
    sampled: int = 0
    """Tokens sampled so far."""

    def end(self, event: End) -> None:
        """Add the last event."""
        self.events.append(event)
        self.done = True


class SequenceState:
    """The state of one request in the batch."""

    def __init__(self, handle: RequestHandle, spec: ModelSpec) -> None:
        request = handle.request
        self.handle = handle
        self.request = request
        self.codes: list[int] = []
        """Codes of the current image."""
        self.finish: Finish | None = None
        """Why the sequence ended."""
        self.image_requested = False
        """Whether the last token was boi."""
        self._spec = spec
        self._grid = request.grid or (0, 0)
        self._num_codes = self._grid[0] * self._grid[1]
        self._rows_shown = 0
        # Only `Batch` writes the attributes below.
        self.target: Target = "text"
        """What to sample now."""
        self.sampling: SamplingConfig = request.sampling
        """How to sample it now."""
        self.guided = False
        """Whether the second slot takes part in sampling now."""
        self.may_open_image = False
        """Whether the next text token can be boi."""
        self.slots: list[int] = []
        """Slots in the batch, from 0: the conditional one, then the unconditional one, if any."""
        self.lengths: list[int] = []
        """Cached tokens in each slot."""
        self.next_tokens: list[int] = []
        """The next token to feed to each slot."""
        self.steps = 0
        """Tokens sampled."""
        self.prompt = request.prompt
        """Tokens of the first slot."""
        self.num_slots = 1
        """Slots that the sequence needs, now or later."""
        self.expected_length = len(request.prompt)
        """Cache positions that the sequence will almost certainly need."""
        if isinstance(request, ImageRequest):
            self._tokens_left = 0
            self.target = "codes"
            self.guided = request.sampling.guidance not in (0, 1)
            self.num_slots = 2 if self.guided else 1
            self.expected_length += self._num_codes
            if request.sampling.guidance == 0:
                self.prompt = spec.unconditional
        else:
            self._tokens_left = request.max_tokens
            if request.grid is not None and request.image_sampling.guidance != 1:
                self.num_slots = 2
            length = self.expected_length + min(request.max_tokens, _TEXT_ROOM)
            self.expected_length = min(length, spec.context)

    @property
    def active_slots(self) -> list[int]:
        """The slots that take part in sampling now."""
        return self.slots[: 2 if self.guided else 1]

    @property
    def steps_before_sync(self) -> int:
        """Steps that can run before the host must read the tokens; 0 in a text."""
        if self.target == "text":
            return 0
        left = self._num_codes - len(self.codes)
        rows = self.request.preview_every
        until_preview = (self._rows_shown + rows) * self._grid[1] - len(self.codes)
        return min(left, until_preview) if rows else left

    @property
    def image_complete(self) -> bool:
        """Whether an image in a text is complete and the text continues."""
        whole = self.target == "codes" and len(self.codes) == self._num_codes
        return whole and self.finish is None

    def image_fits(self) -> bool:
        """Return whether the text can contain an image here that fits the context."""
        if isinstance(self.request, ImageRequest) or self.request.grid is None:
            return False
        # boi, eoi and one text token must fit as well.
        return self.lengths[0] + 1 + self._num_codes + 3 <= self._spec.context

    def accept(self, columns: list[int]) -> None:
        """Take the sampled columns of `target`, in order."""
        if self.target == "codes":
            self.codes += columns
            self._emit_image()
            return
        for token in columns:
            self._accept_text(token)

    def start_image(self) -> None:
        """Continue with the codes of an image after boi."""
        self.codes, self._rows_shown, self.image_requested = [], 0, False

    def check_limits(self) -> None:
        """End a text that has no room left."""
        if self._tokens_left == 0 or self.lengths[0] + 1 >= self._spec.context:
            self.finish = "length"

    def _accept_text(self, token: int) -> None:
        if token in self._spec.stop:
            self.finish = "stop"
            return
        self._tokens_left -= 1
        if token == self._spec.vocabulary.boi:
            self.image_requested = True
            return
        self.handle.events.append(TextStep(token=token))
        self.check_limits()

    def _emit_image(self) -> None:
        height, width = self._grid
        rows = len(self.codes) // width
        every = self.request.preview_every
        if len(self.codes) == self._num_codes:
            codes = torch.tensor(self.codes).view(height, width)
            self.handle.events.append(ImageStep(codes=codes))
            if isinstance(self.request, ImageRequest):
                self.finish = "stop"
        elif every and rows >= self._rows_shown + every:
            self._rows_shown = rows
            codes = torch.tensor(self.codes[: rows * width]).view(rows, width)
            self.handle.events.append(ImageRows(codes=codes))
