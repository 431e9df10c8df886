"""The running batch: sequences join and leave while others run.

The slots of the sequences are contiguous at the beginning of the cache; when a sequence leaves, the
last slots move into the gap. A prompt that another sequence started with is copied instead of
computed again, and so is the unconditional prompt. Sampled tokens are on the host after `collect`,
which must be called before a sequence is added, changed or removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liquidmm.generate.backends import Backend
from liquidmm.generate.cuda_graphs import CudaGraphs
from liquidmm.generate.requests import TextRequest
from liquidmm.generate.sampling import check_valid
from liquidmm.generate.state import ModelSpec, SequenceState
from liquidmm.generate.step import FIRST_SLOT, DecodeStep, Sampled, padded_count

_ROUND_TO = 16
"""Attended and reserved lengths are rounded up to a multiple of this, and so are prompts unless the
backend is batch invariant (excess positions are overwritten later)."""


class Batch:
    """The sequences on one backend. Nothing else changes their slots and lengths."""

    def __init__(self, backend: Backend, spec: ModelSpec, graphs: CudaGraphs | None = None) -> None:
        """Create an empty batch; ``graphs`` captures decoding steps, None runs them directly."""
        self._backend = backend
        self._spec = spec
        self._graphs = graphs
        self._owners: list[tuple[SequenceState, int]] = []
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._length = 0
        self._reserved = (0, 0)
        self._step: DecodeStep | None = None
        self._uncollected: list[Sampled] = []
        self._has_unconditional = False

    @property
    def num_slots(self) -> int:
        """Slots in use."""
        return len(self._owners)

    def add(self, sequence: SequenceState) -> None:
        """Give a sequence the next slots and process its prompt."""
        self._invalidate()
        prompt = sequence.prompt
        sequence.slots = list(range(self.num_slots, self.num_slots + sequence.num_slots))
        sequence.lengths, sequence.next_tokens = [len(prompt) - 1, 0], [prompt[-1], 0]
        self._owners += [(sequence, place) for place in range(sequence.num_slots)]
        self._reserve(sequence.expected_length)
        cached = tuple(prompt[:-1])
        slot = sequence.slots[0]
        same = next((other for other, held in self._prompts.items() if held == cached), None)
        if same is not None:
            self._backend.copy(FIRST_SLOT + same, [FIRST_SLOT + slot], len(cached))
        else:
            self._prefill(FIRST_SLOT + slot, cached, 0)
        self._prompts[slot] = cached
        if sequence.guided:
            self._add_unconditional(sequence)

    def open_image(self, sequence: SequenceState) -> None:
        """Start sampling the codes of an image after a text that ended with boi."""
        self._invalidate()
        assert isinstance(sequence.request, TextRequest)
        sequence.target, sequence.sampling = "codes", sequence.request.image_sampling
        if sequence.num_slots == 2:
            self._add_unconditional(sequence)

    def close_image(self, sequence: SequenceState) -> None:
        """Continue with text after the last code of an image and eoi."""
        self._invalidate()
        self._prefill(FIRST_SLOT + sequence.slots[0], sequence.next_tokens[:1], sequence.lengths[0])
        sequence.lengths[0] += 1
        sequence.lengths[1:] = [0] * len(sequence.lengths[1:])
        sequence.next_tokens[0] = self._spec.vocabulary.eoi
        sequence.target, sequence.sampling = "text", sequence.request.sampling
        sequence.guided = False

    def remove(self, sequence: SequenceState) -> None:
        """Remove a sequence; the last slots move into the gap."""
        self._invalidate()
        for slot in sorted(sequence.slots, reverse=True):
            self._prompts.pop(slot, None)
            mover, place = self._owners.pop()
            last = self.num_slots
            if slot == last:
                continue
            self._backend.copy(FIRST_SLOT + last, [FIRST_SLOT + slot], mover.lengths[place])
            self._owners[slot] = (mover, place)
            mover.slots[place] = slot
            if last in self._prompts:
                self._prompts[slot] = self._prompts.pop(last)
        sequence.slots = []

    def advance(self) -> None:
        """Sample one token for every sequence."""
        sequences = [sequence for sequence, place in self._owners if place == 0]
        for sequence in sequences:
            if sequence.target == "text" and sequence.may_open_image != sequence.image_fits():
                sequence.may_open_image = not sequence.may_open_image
                self._invalidate()
        if self._step is None:
            self._step = DecodeStep(sequences, self._spec.vocabulary, self._backend)
            if self._graphs is not None:
                self._step = self._graphs.get_or_add(self._step)
        longest = max(sequence.lengths[place] for sequence, place in self._owners) + 1
        if longest > self._length:
            self._reserve(min(2 * longest, self._spec.context))
        if self._graphs is None:
            kv_length = min(_rounded(longest), self._length)
            sampled = self._step.run(kv_length, noise_ahead=True)
        else:
            sampled = self._graphs.run(self._step, longest, self._reserved)
        self._uncollected.append(sampled)
        for sequence in sequences:
            sequence.steps += 1
            for place in range(len(sequence.active_slots)):
                sequence.lengths[place] += 1

    def collect(self) -> dict[SequenceState, list[int]]:
        """Copy the tokens sampled since the last call to the host.

        Returns:
            The sampled columns of each sequence in its range of tokens, in order.

        Raises:
            CheckpointError: The model's logits contain NaN.
        """
        if not self._uncollected:
            return {}
        assert self._step is not None
        found: dict[SequenceState, list[int]] = {}
        for index, group in enumerate(self._step.groups):
            sampled = [step[index] for step in self._uncollected]
            columns = torch.stack([columns for columns, _ in sampled], dim=1)
            check_valid(torch.stack([valid for _, valid in sampled]))
            found |= zip(group.sequences, columns.tolist(), strict=True)
        self._uncollected = []
        for sequence, sampled_columns in found.items():
            offset = self._spec.vocabulary.image_offset if sequence.target == "codes" else 0
            for place in range(len(sequence.active_slots)):
                sequence.next_tokens[place] = offset + sampled_columns[-1]
        return found

    def clear(self) -> None:
        """Drop all sequences and their tokens."""
        self._owners, self._prompts, self._uncollected, self._step = [], {}, [], None

    def _add_unconditional(self, sequence: SequenceState) -> None:
        """Start the second slot of a sequence with the unconditional prompt."""
        cached, last = self._spec.unconditional[:-1], self._spec.unconditional[-1]
        if not self._has_unconditional:
            self._prefill(0, cached, 0)
            self._has_unconditional = True
        self._backend.copy(0, [FIRST_SLOT + sequence.slots[1]], len(cached))
        sequence.lengths[1], sequence.next_tokens[1] = len(cached), last
        sequence.guided = True

    def _reserve(self, length: int) -> None:
        # Round up so that requests of similar length do not move the cache each time.
        self._length = max(self._length, min(_rounded(length), self._spec.context))
        slots = FIRST_SLOT + padded_count(self.num_slots, self._backend)
        self._reserved = (max(slots, self._reserved[0]), self._length)
        self._backend.reserve(*self._reserved)

    def _prefill(self, slot: int, tokens: Sequence[int], start: int) -> None:
        """Process tokens of one slot from position ``start``."""
        if not tokens:
            return
        count = len(tokens)
        if not self._backend.batch_invariant:
            count = min(_rounded(count), self._spec.context - start)
        if start + count > self._length:
            self._reserve(start + count)
        device = self._backend.device
        padded: Tensor = torch.zeros(1, count, dtype=torch.long, device=device)
        padded[0, : len(tokens)] = torch.tensor(list(tokens), device=device)
        self._backend.forward(padded, torch.tensor([start], device=device), slot, start + count)

    def _invalidate(self) -> None:
        assert not self._uncollected, "collect before a change"
        self._step = None


def _rounded(length: int) -> int:
    return -(-length // _ROUND_TO) * _ROUND_TO
