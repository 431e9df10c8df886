"""One pass of the running batch as tensor operations: from the fed ids to the drawn ones.

Contract: a `Plan` is made for lanes that stay as they are for a while. Its tensors hold all that
changes from pass to pass, and a pass changes them in place without asking the device for anything:
the host never waits, and a pass can be recorded as a CUDA graph. Two plans of equal signature do
the same operations, so one can `take_over` the values of the other and keep what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from liquidmm.generate.decoders.decoder import Decoder
from liquidmm.generate.noise import exponential
from liquidmm.generate.sampling import Sampler, SamplingConfig, guide
from liquidmm.vocabulary import Vocabulary

Part = Literal["text", "codes"]
"""What is drawn from: the text ids or the image slice."""

FIRST_ROW = 1
"""Row 0 of the cache holds the unconditional prompt; the batch begins behind it."""

_NOISE_AHEAD = 2**16
"""Random numbers that are made at a time, about: small operations cost their start on a CPU."""


def rows_of_pass(rows: int, decoder: Decoder) -> int:
    """Round a number of rows up to one of few, and at least two, where the decoder wants that."""
    if decoder.exact:
        return rows
    step = 2 if rows <= 8 else 4 if rows <= 32 else 8
    return max(2, -(-rows // step) * step)


@dataclass(kw_only=True, slots=True, eq=False)
class Lane:
    """One sequence in the batch: a row, and a second one where it may be guided."""

    sampling: SamplingConfig
    """How ids are drawn now."""
    seed: int
    """Seed of its random numbers."""
    part: Part
    """What is drawn from now."""
    rows: list[int]
    """Rows of the batch, from 0: the conditional one, then maybe the unconditional one."""
    lengths: list[int]
    """Ids that each of them holds."""
    feed: list[int]
    """The next id of each of them."""
    step: int = 0
    """Draws made."""
    guided: bool = False
    """Whether its second row takes part in drawing now."""
    may_open: bool = False
    """Whether text may hold boi now."""

    @property
    def drawing(self) -> int:
        """How many of its rows take part in drawing."""
        return 2 if self.guided else 1


class Group:
    """The lanes of a plan that draw from the same part, side by side."""

    def __init__(
        self, part: Part, lanes: Sequence[Lane], vocabulary: Vocabulary, decoder: Decoder
    ) -> None:
        """Put what each lane needs into columns."""
        device = decoder.device

        def whole(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        self.lanes = list(lanes)
        codes = part == "codes"
        self._part = vocabulary.image_slice if codes else slice(0, vocabulary.text_size)
        rows = [row for lane in lanes for row in lane.rows[: lane.drawing]]
        place = {row: index for index, row in enumerate(rows)}
        self._rows = whole(rows)
        """Rows that draw."""
        self._scored = whole(rows + rows[:1] * (rows_of_pass(len(rows), decoder) - len(rows)))
        """The same, and the first one again and again up to the rows of a pass."""
        self._conditional = whole([place[lane.rows[0]] for lane in lanes])
        self._unconditional = whole([place[lane.rows[lane.drawing - 1]] for lane in lanes])
        self._scale = torch.tensor([[lane.sampling.guidance] for lane in lanes], device=device)
        self._guided = any(lane.guided for lane in lanes)
        self._sources = whole(
            [index for index, lane in enumerate(lanes) for _ in range(lane.drawing)]
        )
        """For each of the rows, the lane whose id it gets."""
        self.sampler = Sampler([lane.sampling for lane in lanes], device)
        self._seeds = whole([lane.seed for lane in lanes])
        self._steps = whole([lane.step for lane in lanes])
        self._columns = torch.arange(self._part.stop - self._part.start, device=device)
        self._blocked = None if codes else whole([vocabulary.eoi, vocabulary.unconditional])
        self._boi = vocabulary.boi
        shut = [] if codes else [n for n, lane in enumerate(lanes) if not lane.may_open]
        self._shut = whole(shut) if shut else None
        self._noise: Tensor | None = None
        self._ahead = 0

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors whose values belong to the lanes."""
        own = [
            self._rows,
            self._scored,
            self._conditional,
            self._unconditional,
            self._scale,
            self._sources,
        ]
        own += [self._seeds, self._steps, *self.sampler.tensors]
        return own if self._shut is None else [*own, self._shut]

    @property
    def signature(self) -> tuple[object, ...]:
        """What two groups must have in common to do the same operations."""
        shapes = tuple(tuple(tensor.shape) for tensor in self.tensors)
        return (self._part.start, self._guided, self.sampler.signature, shapes)

    def draw(self, decoder: Decoder, hidden: Tensor, *, ahead: bool) -> tuple[Tensor, Tensor]:
        """Draw a column for each lane.

        Args:
            decoder: Gives the logits.
            hidden: Last hidden states of all rows, (R, D).
            ahead: Whether random numbers of later passes may be made now.

        Returns:
            Columns, (B,), int64, and whether they are good, (B,), bool.
        """
        logits = decoder.logits(hidden.index_select(0, self._scored), self._part)
        if self._guided:
            unconditional = logits.index_select(0, self._unconditional)
            logits = guide(logits.index_select(0, self._conditional), unconditional, self._scale)
        else:
            logits = logits[: len(self.lanes)]
        if self._blocked is not None:
            logits = logits.index_fill(1, self._blocked, -torch.inf)
            if self._shut is not None:
                logits[:, self._boi].index_fill_(0, self._shut, -torch.inf)
        noise = None if self.sampler.all_greedy else self._next_noise(ahead=ahead)
        self._steps.add_(1)
        return self.sampler.draw(logits, noise)

    def feed(self, ids: Tensor, columns: Tensor) -> None:
        """Write what was drawn as the next ids of its rows, (R, 1)."""
        drawn = columns.index_select(0, self._sources).add_(self._part.start)
        ids.index_copy_(0, self._rows, drawn[:, None])

    def _next_noise(self, *, ahead: bool) -> Tensor:
        if not ahead:
            return exponential(self._seeds, self._steps, self._columns)
        if self._noise is None or self._ahead == len(self._noise):
            count = max(1, _NOISE_AHEAD // (len(self.lanes) * len(self._columns)))
            steps = self._steps + torch.arange(count, device=self._steps.device)[:, None]
            self._noise, self._ahead = exponential(self._seeds, steps, self._columns), 0
        self._ahead += 1
        return self._noise[self._ahead - 1]


class Plan:
    """The passes of some lanes until one of them changes."""

    def __init__(
        self, lanes: Sequence[Lane], rows: int, vocabulary: Vocabulary, decoder: Decoder
    ) -> None:
        """Put the lanes' rows side by side.

        Args:
            lanes: All lanes of the batch.
            rows: Rows of a pass, at least those that draw; others run idle.
            vocabulary: Where text and codes lie.
            decoder: The language model that will make the passes.
        """
        device = decoder.device
        feed, starts, moves = [0] * rows, [0] * rows, [0] * rows
        for lane in lanes:
            for place, row in enumerate(lane.rows[: lane.drawing]):
                feed[row], starts[row], moves[row] = lane.feed[place], lane.lengths[place], 1
        self._ids = torch.tensor(feed, device=device)[:, None]
        self._starts = torch.tensor(starts, device=device)
        self._moves = torch.tensor(moves, device=device)
        parts: tuple[Part, ...] = ("codes", "text")
        self.groups = [
            Group(part, members, vocabulary, decoder)
            for part in parts
            if (members := [lane for lane in lanes if lane.part == part])
        ]

    @property
    def signature(self) -> tuple[object, ...]:
        """What two plans must have in common to do the same operations."""
        return (self._ids.shape[0], *(group.signature for group in self.groups))

    def take_over(self, other: Plan) -> None:
        """Take lanes and values of a plan of equal signature; the tensors stay where they are."""
        for mine, its in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(its)
        for group, new in zip(self.groups, other.groups, strict=True):
            group.lanes = new.lanes

    def run(self, decoder: Decoder, span: int, *, ahead: bool) -> list[tuple[Tensor, Tensor]]:
        """Make a pass: feed an id to each row and draw the next ones.

        Args:
            decoder: The language model.
            span: Positions that are attended to.
            ahead: Whether random numbers of later passes may be made now.

        Returns:
            For each group, the drawn columns, (B,), and whether they are good, (B,).
        """
        hidden = decoder.forward(self._ids, self._starts, FIRST_ROW, span)[:, -1]
        drawn = [group.draw(decoder, hidden, ahead=ahead) for group in self.groups]
        for group, (columns, _) in zip(self.groups, drawn, strict=True):
            group.feed(self._ids, columns)
        self._starts.add_(self._moves)
        return drawn

    def _tensors(self) -> list[Tensor]:
        own = [self._ids, self._starts, self._moves]
        return own + [tensor for group in self.groups for tensor in group.tensors]
