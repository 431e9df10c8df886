"""One decoding step of the batch as tensor operations, from fed tokens to sampled tokens.

A `DecodeStep` is used until one of its sequences changes. All values that change from step to step
are in its tensors and are updated in place without waiting for the device, so a step can be
captured as a CUDA graph. Two steps with equal signatures run the same operations: one can
`copy_from` the other and keep its graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liquidmm.generate.backends import Backend
from liquidmm.generate.rng import exponential
from liquidmm.generate.sampling import Sampler, guide
from liquidmm.generate.state import SequenceState
from liquidmm.vocabulary import Vocabulary

FIRST_SLOT = 1
"""Slot 0 of the cache contains the unconditional prompt; the batch comes after it."""

Sampled = list[tuple[Tensor, Tensor]]
"""For each group the sampled columns, (B,), and whether they are valid, (B,)."""

_NOISE_AHEAD = 2**16
"""Approximate number of random numbers generated at once; small operations are slow on a CPU."""


def padded_count(count: int, backend: Backend) -> int:
    """Round a number of sequences up to one of a few values from 2, if the backend needs it."""
    if backend.batch_invariant:
        return count
    step = 2 if count <= 8 else 4 if count <= 32 else 8
    return max(2, -(-count // step) * step)


class SamplingGroup:
    """Sequences that sample from the same range of tokens."""

    def __init__(self, sequences: Sequence[SequenceState], tokens: slice, backend: Backend) -> None:
        self.sequences = list(sequences)
        self._backend = backend
        self._range = tokens
        slots = [slot for sequence in sequences for slot in sequence.active_slots]
        self._slots = self._tensor(slots)
        padding = slots[:1] * (padded_count(len(slots), backend) - len(slots))
        self._padded_slots = self._tensor(slots + padding)
        row = {slot: index for index, slot in enumerate(slots)}
        active = [sequence.active_slots for sequence in sequences]
        self._conditional = self._tensor([row[slots[0]] for slots in active])
        self._unconditional = self._tensor([row[slots[-1]] for slots in active])
        self._source = self._tensor([i for i, slots in enumerate(active) for _ in slots])
        """For each slot, the sequence whose token it gets."""
        self._guided = any(sequence.guided for sequence in sequences)
        configs = [sequence.sampling for sequence in sequences]
        self._scale = torch.tensor([[config.guidance] for config in configs], device=backend.device)
        self._sampler = Sampler(configs, backend.device)
        self._seeds = self._tensor([sequence.request.seed for sequence in sequences])
        self._steps = self._tensor([sequence.steps for sequence in sequences])
        self._columns = torch.arange(tokens.stop - tokens.start, device=backend.device)
        self._noise: Tensor | None = None
        self._noise_used = 0

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors whose values depend on the sequences."""
        return [
            self._slots,
            self._padded_slots,
            self._conditional,
            self._unconditional,
            self._scale,
            self._source,
            self._seeds,
            self._steps,
            *self._sampler.tensors,
        ]

    @property
    def signature(self) -> tuple[object, ...]:
        """A key that is equal for two groups with the same operations."""
        shapes = tuple(tuple(tensor.shape) for tensor in self.tensors)
        return (self._range.start, self._guided, self._sampler.signature, shapes)

    def sample(self, hidden: Tensor, *, noise_ahead: bool) -> tuple[Tensor, Tensor]:
        """Sample a column for each sequence.

        Args:
            hidden: Last hidden states of all slots, (S, D).
            noise_ahead: Whether to also generate random numbers for later steps.

        Returns:
            Columns, (B,), int64, and whether they are valid, (B,), bool.
        """
        logits = self._backend.logits(hidden.index_select(0, self._padded_slots), self._range)
        if self._guided:
            unconditional = logits.index_select(0, self._unconditional)
            logits = guide(logits.index_select(0, self._conditional), unconditional, self._scale)
        else:
            logits = logits[: len(self.sequences)]
        logits = self._mask(logits)
        noise = None if self._sampler.all_greedy else self._next_noise(ahead=noise_ahead)
        self._steps.add_(1)
        return self._sampler.sample(logits, noise)

    def feed(self, next_tokens: Tensor, columns: Tensor) -> None:
        """Write the sampled tokens to their slots in ``next_tokens``, (S, 1)."""
        tokens = columns.index_select(0, self._source).add_(self._range.start)
        next_tokens.index_copy_(0, self._slots, tokens[:, None])

    def _mask(self, logits: Tensor) -> Tensor:
        return logits

    def _next_noise(self, *, ahead: bool) -> Tensor:
        if not ahead:
            return exponential(self._seeds, self._steps, self._columns)
        if self._noise is None or self._noise_used == len(self._noise):
            count = max(1, _NOISE_AHEAD // (len(self.sequences) * len(self._columns)))
            steps = self._steps + torch.arange(count, device=self._steps.device)[:, None]
            self._noise = exponential(self._seeds, steps, self._columns)
            self._noise_used = 0
        self._noise_used += 1
        return self._noise[self._noise_used - 1]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._backend.device)


class TextGroup(SamplingGroup):
    """Sequences that sample text; boi is possible only where an image is allowed."""

    def __init__(
        self, sequences: Sequence[SequenceState], vocabulary: Vocabulary, backend: Backend
    ) -> None:
        super().__init__(sequences, slice(0, vocabulary.text_size), backend)
        self._never = self._tensor([vocabulary.eoi, vocabulary.unconditional])
        self._boi = vocabulary.boi
        closed = [i for i, sequence in enumerate(sequences) if not sequence.may_open_image]
        self._no_image = self._tensor(closed) if closed else None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors whose values depend on the sequences."""
        own = super().tensors
        return own if self._no_image is None else [*own, self._no_image]

    def _mask(self, logits: Tensor) -> Tensor:
        logits = logits.index_fill(1, self._never, -torch.inf)
        if self._no_image is not None:
            logits[:, self._boi].index_fill_(0, self._no_image, -torch.inf)
        return logits


class DecodeStep:
    """The step of the current sequences, until one of them changes."""

    def __init__(
        self, sequences: Sequence[SequenceState], vocabulary: Vocabulary, backend: Backend
    ) -> None:
        """Collect the state of all sequences of the batch."""
        device = backend.device
        active = [slot for sequence in sequences for slot in sequence.active_slots]
        # Slots that do not take part run with dummy inputs.
        count = padded_count(1 + max(active), backend)
        tokens, starts, moves = [0] * count, [0] * count, [0] * count
        for sequence in sequences:
            for place, slot in enumerate(sequence.active_slots):
                tokens[slot] = sequence.next_tokens[place]
                starts[slot], moves[slot] = sequence.lengths[place], 1
        self._tokens = torch.tensor(tokens, device=device)[:, None]
        self._starts = torch.tensor(starts, device=device)
        self._moves = torch.tensor(moves, device=device)
        self.backend = backend
        self.groups: list[SamplingGroup] = []
        if codes := [sequence for sequence in sequences if sequence.target == "codes"]:
            self.groups.append(SamplingGroup(codes, vocabulary.image_slice, backend))
        if text := [sequence for sequence in sequences if sequence.target == "text"]:
            self.groups.append(TextGroup(text, vocabulary, backend))

    @property
    def signature(self) -> tuple[object, ...]:
        """A key that is equal for two steps with the same operations."""
        return (self._tokens.shape[0], *(group.signature for group in self.groups))

    def copy_from(self, other: DecodeStep) -> None:
        """Copy the sequences and values of a step with an equal signature."""
        for target, source in zip(self._tensors(), other._tensors(), strict=True):
            target.copy_(source)
        for group, new in zip(self.groups, other.groups, strict=True):
            group.sequences = new.sequences

    def run(self, kv_length: int, *, noise_ahead: bool) -> Sampled:
        """Feed a token to each slot and sample the next ones.

        Args:
            kv_length: Cache positions to attend to.
            noise_ahead: Whether to also generate random numbers for later steps.
        """
        hidden = self.backend.forward(self._tokens, self._starts, FIRST_SLOT, kv_length)[:, -1]
        sampled = [group.sample(hidden, noise_ahead=noise_ahead) for group in self.groups]
        for group, (columns, _) in zip(self.groups, sampled, strict=True):
            group.feed(self._tokens, columns)
        self._starts.add_(self._moves)
        return sampled

    def _tensors(self) -> list[Tensor]:
        own = [self._tokens, self._starts, self._moves]
        return own + [tensor for group in self.groups for tensor in group.tensors]
