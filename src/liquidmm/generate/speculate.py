"""Several codes in one pass: coupled speculative Jacobi decoding.

Contract: what comes out is exactly what one code at a time gives, whatever the drafts were. A pass
feeds the last code and a window of drafts, and so gets the final distribution (after guidance,
temperature, top-k and top-p) of every position of the window, given the drafts before it. Each
position is then drawn again with the random numbers that belong to it. The first draw is right,
since nothing before it was a guess; so is the next one as long as what was drawn equals the draft
that it was conditioned on. All others are the drafts of the next pass.

This is the Gumbel coupling of speculative coupled decoding (arXiv 2510.24211): draws of a position
in successive passes share their random numbers, so they agree with a probability of at least
(1 - d) / (1 + d), where d is the total variation between the two distributions. Here the draw that
is kept shares them too, so there is nothing to reject: the ids are those of the plain loop with the
same seed, and the distribution is hence the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liquidmm.generate.decoders.decoder import Decoder
from liquidmm.generate.noise import exponential
from liquidmm.generate.plan import FIRST_ROW, Lane
from liquidmm.generate.sampling import Sampler, check_good, guide
from liquidmm.vocabulary import Vocabulary


class Window:
    """The drafts of one picture."""

    def __init__(self, size: int, grid: tuple[int, int], vocabulary: Vocabulary) -> None:
        """Begin without drafts.

        Args:
            size: Codes drawn in a pass at most, at least 2.
            grid: Rows and columns of the picture.
            vocabulary: Where codes lie.
        """
        self._size = size
        self._grid = grid
        self._vocabulary = vocabulary
        self._at = 0
        self._drafts: list[int] = []

    def run(self, decoder: Decoder, lane: Lane, codes: Sequence[int], room: int) -> list[int]:
        """Make a pass.

        Args:
            decoder: The language model.
            lane: The only lane of the batch; its next ids are those to feed.
            codes: The picture's codes so far.
            room: Positions of a row.

        Returns:
            The codes drawn, at least one and at most the size of the window.

        Raises:
            CheckpointError: The model's scores hold NaN.
        """
        count = min(self._size, self._grid[0] * self._grid[1] - len(codes))
        drafts = self._filled(codes, count - 1)
        device = decoder.device
        offset = self._vocabulary.image_offset
        rows = range(lane.drawing)
        ids = [[lane.feed[row], *(offset + draft for draft in drafts)] for row in rows]
        starts = torch.tensor([lane.lengths[row] for row in rows], device=device)
        span = min(max(lane.lengths[row] for row in rows) + count, room)
        hidden = decoder.forward(torch.tensor(ids, device=device), starts, FIRST_ROW, span)
        logits = decoder.logits(hidden.flatten(0, 1), self._vocabulary.image_slice)
        if lane.guided:
            logits = guide(logits[:count], logits[count:], lane.sampling.guidance)
        drawn = self._draw(logits, lane)
        right = 1
        while right < count and drawn[right - 1] == drafts[right - 1]:
            right += 1
        self._at, self._drafts = len(codes) + right, drawn[right:]
        return drawn[:right]

    @staticmethod
    def _draw(logits: Tensor, lane: Lane) -> list[int]:
        """Draw every position of the window with its own random numbers."""
        count, size = logits.shape
        sampler = Sampler([lane.sampling] * count, logits.device)
        noise = None
        if not sampler.all_greedy:
            steps = torch.arange(lane.step, lane.step + count, device=logits.device)
            seeds = torch.full_like(steps, lane.seed)
            noise = exponential(seeds, steps, torch.arange(size, device=logits.device))
        drawn, good = sampler.draw(logits, noise)
        check_good(good)
        codes: list[int] = drawn.tolist()
        return codes

    def _filled(self, codes: Sequence[int], count: int) -> list[int]:
        """Give drafts for the next positions; new ones repeat the code above, or the one before."""
        kept = self._drafts if len(codes) == self._at else []
        known = [*codes, *kept[:count]]
        width = self._grid[1]
        while len(known) < len(codes) + count:
            known.append(known[-width] if len(known) >= width else (known or [0])[-1])
        return known[len(codes) :]
