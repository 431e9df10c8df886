"""The running batch: lanes come and go while the others run.

Contract: the rows of the lanes lie side by side at the beginning of the cache; where a lane leaves,
the last rows move into the hole. A prompt that another lane began with, and the unconditional
prompt, are copied instead of read again. What was drawn is on the host after `collect`, and must be
there before a lane is added, changed or removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liquidmm.generate.decoders.decoder import Decoder
from liquidmm.generate.graphs import Graphs
from liquidmm.generate.plan import FIRST_ROW, Lane, Plan, rows_of_pass
from liquidmm.generate.sampling import check_good
from liquidmm.generate.speculate import Window
from liquidmm.vocabulary import Vocabulary

_READ = 16
"""A prompt is read in a round number of ids, unless the decoder is exact; what is read too much is
written over."""
_SPAN = 16
"""Attended positions are rounded up to a multiple of this."""


class Batch:
    """Lanes over one decoder."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        unconditional: Sequence[int],
        context: int,
        graphs: Graphs | None = None,
    ) -> None:
        """Begin empty.

        Args:
            decoder: The language model and its cache.
            vocabulary: Where text and codes lie.
            unconditional: Prompt of the second row of a guided pair, up to and including boi.
            context: Ids that a row can hold at most.
            graphs: Records passes and replays them; None runs them as they are.
        """
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._unconditional = tuple(unconditional)
        self._context = context
        self._graphs = graphs
        self._owners: list[tuple[Lane, int]] = []
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._room = 0
        self._held = (0, 0)
        self._plan: Plan | None = None
        self._drawn: list[list[tuple[Tensor, Tensor]]] = []
        self._has_unconditional = False

    @property
    def rows(self) -> int:
        """Rows that are taken."""
        return len(self._owners)

    @property
    def lanes(self) -> list[Lane]:
        """All lanes, in the order of their rows."""
        return [lane for lane, place in self._owners if place == 0]

    def add(self, lane: Lane, prompt: Sequence[int], room: int, *, pair: bool) -> None:
        """Give a lane rows behind the others and read its prompt.

        Args:
            lane: Without rows yet.
            prompt: Its ids, at least one.
            room: Ids that it will hold, about; more are made room for when they come.
            pair: Whether it needs a second row, now or later.
        """
        self._change()
        lane.rows = list(range(self.rows, self.rows + (2 if pair else 1)))
        lane.lengths, lane.feed = [len(prompt) - 1, 0], [prompt[-1], 0]
        self._owners += [(lane, place) for place in range(len(lane.rows))]
        self._reserve(room)
        begun = tuple(prompt[:-1])
        same = next((row for row, other in self._prompts.items() if other == begun), None)
        if same is not None:
            self._decoder.copy(FIRST_ROW + same, [FIRST_ROW + lane.rows[0]], len(begun))
        else:
            self.append(lane, begun, at=0)
        self._prompts[lane.rows[0]] = begun
        if lane.guided:
            self.pair_up(lane)

    def append(self, lane: Lane, ids: Sequence[int], at: int) -> None:
        """Let the conditional row of a lane read ids from position ``at`` on."""
        self._read(FIRST_ROW + lane.rows[0], ids, at)

    def pair_up(self, lane: Lane) -> None:
        """Let the second row of a lane begin with the unconditional prompt."""
        self._change()
        begun = self._unconditional[:-1]
        if not self._has_unconditional:
            self._read(0, begun, 0)
            self._has_unconditional = True
        self._decoder.copy(0, [FIRST_ROW + lane.rows[1]], len(begun))
        lane.lengths[1], lane.feed[1] = len(begun), self._unconditional[-1]
        lane.guided = True

    def changed(self) -> None:
        """Say that what a lane draws or is fed has been changed."""
        self._change()

    def remove(self, lane: Lane) -> None:
        """Take a lane out; the last rows move into the hole."""
        self._change()
        for row in sorted(lane.rows, reverse=True):
            self._prompts.pop(row, None)
            mover, place = self._owners.pop()
            last = self.rows
            if row == last:
                continue
            self._decoder.copy(FIRST_ROW + last, [FIRST_ROW + row], mover.lengths[place])
            self._owners[row] = (mover, place)
            mover.rows[place] = row
            if last in self._prompts:
                self._prompts[row] = self._prompts.pop(last)
        lane.rows = []

    def advance(self) -> None:
        """Make one pass: every lane draws one id."""
        if self._plan is None:
            drawing = (row for lane in self.lanes for row in lane.rows[: lane.drawing])
            rows = rows_of_pass(1 + max(drawing), self._decoder)
            self._plan = Plan(self.lanes, rows, self._vocabulary, self._decoder)
            if self._graphs is not None:
                self._plan = self._graphs.settle(self._plan)
        longest = max(lane.lengths[place] for lane, place in self._owners) + 1
        if longest > self._room:
            self._reserve(min(2 * longest, self._context))
        if self._graphs is None:
            span = min(-(-longest // _SPAN) * _SPAN, self._room)
            drawn = self._plan.run(self._decoder, span, ahead=True)
        else:
            drawn = self._graphs.run(self._plan, self._decoder, longest, self._held)
        self._drawn.append(drawn)
        for lane in self.lanes:
            self._count(lane, 1)

    def speculate(self, window: Window, codes: Sequence[int]) -> list[int]:
        """Make a pass in which the only lane, which draws codes, may draw several.

        Args:
            window: Its drafts.
            codes: Codes of its picture so far.

        Returns:
            The columns drawn, at least one.
        """
        self._change()
        [lane] = self.lanes
        columns = window.run(self._decoder, lane, codes, self._room)
        self._count(lane, len(columns))
        self._fed(lane, columns[-1])
        return columns

    def collect(self) -> list[tuple[Lane, list[int]]]:
        """Bring what was drawn since the last time to the host.

        Returns:
            Each lane that drew something and its columns, in order.

        Raises:
            CheckpointError: The model's scores hold NaN.
        """
        if not self._drawn:
            return []
        assert self._plan is not None
        found = []
        for place, group in enumerate(self._plan.groups):
            steps = [drawn[place] for drawn in self._drawn]
            columns = torch.stack([columns for columns, _ in steps], dim=1)
            good = torch.stack([good for _, good in steps])
            check_good(good)
            found += list(zip(group.lanes, columns.tolist(), strict=True))
        self._drawn = []
        for lane, columns in found:
            self._fed(lane, columns[-1])
        return found

    def clear(self) -> None:
        """Drop all lanes and what they drew."""
        self._owners, self._prompts, self._drawn, self._plan = [], {}, [], None

    def _fed(self, lane: Lane, column: int) -> None:
        first = self._vocabulary.image_offset if lane.part == "codes" else 0
        for place in range(lane.drawing):
            lane.feed[place] = first + column

    @staticmethod
    def _count(lane: Lane, draws: int) -> None:
        lane.step += draws
        for place in range(lane.drawing):
            lane.lengths[place] += draws

    def _reserve(self, room: int) -> None:
        # Rounded up, so that requests of nearly equal length don't each move the cache.
        room = min(-(-room // _SPAN) * _SPAN, self._context)
        self._room = max(self._room, room)
        rows = FIRST_ROW + rows_of_pass(self.rows, self._decoder)
        self._held = (max(rows, self._held[0]), self._room)
        self._decoder.reserve(*self._held)

    def _read(self, row: int, ids: Sequence[int], at: int) -> None:
        if not ids:
            return
        count = len(ids)
        if not self._decoder.exact:
            count = min(-(-count // _READ) * _READ, self._context - at)
        if at + count > self._room:
            self._reserve(at + count)
        device = self._decoder.device
        tokens = torch.zeros(1, count, dtype=torch.long, device=device)
        tokens[0, : len(ids)] = torch.tensor(list(ids), device=device)
        start = torch.tensor([at], device=device)
        self._decoder.forward(tokens, start, row, at + count)

    def _change(self) -> None:
        assert not self._drawn, "collect before a change"
        self._plan = None
