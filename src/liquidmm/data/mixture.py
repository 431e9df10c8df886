"""An endless stream of packed rows, drawn from several sources by weight.

Contract: draw number n of a source is a pure function of (seed, source, n): each pass has an order
of its own, and each draw a generator for the random choices of rendering. Which source is next
follows from the counts alone: the one furthest behind its share, so that no source is ever a whole
draw ahead of its share, and few are more than one behind. The state is therefore a few counts and
the draws that wait to be packed; restoring it continues bit by bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from liquidmm.data.packing import Packed, Packer, split
from liquidmm.data.render import KINDS, TASKS, Example, Renderer, Task
from liquidmm.data.shards import Shards, read_shards
from liquidmm.errors import ConfigError, DataError, suggest

Ticket: TypeAlias = tuple[int, int, int]
"""Source, draw and piece: all that is needed to make a waiting example again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of shards, rendered as one task."""

    path: Path
    """Folder that `liquid encode` wrote."""
    task: Task
    """What its rows teach; rows of a kind that the task does not use are left out."""
    weight: float = 1.0
    """Share of the examples, relative to the weights of the other sources."""

    def __post_init__(self) -> None:
        """Check task and weight."""
        if self.task not in TASKS:
            raise ConfigError(f"task: '{self.task}' is unknown.{suggest(self.task, TASKS)}")
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"weight: is {self.weight}. Give a number above 0, or leave it out.")


class _Stream:
    """The rows of one source in their drawn order, pass after pass."""

    def __init__(self, source: Source, shards: Shards, seeds: tuple[int, int]) -> None:
        self.task = source.task
        self._shards = shards
        self._seeds = seeds
        self._rows = np.array(shards.of_kind(KINDS[source.task]), dtype=np.int64)
        if not len(self._rows):
            raise DataError(
                f"{source.path}: no rows of kind {KINDS[source.task]}, which {source.task} needs. "
                "Remove the source or choose another task."
            )
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, renderer: Renderer, draw: int) -> Example:
        """Render the row of one draw."""
        turn, place = divmod(draw, len(self._rows))
        row = self._shards[int(self._order(turn)[place])]
        return renderer.render(row, self.task, np.random.default_rng([*self._seeds, 1, draw]))

    def _permutation(self, turn: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([*self._seeds, 0, turn]).permutation(self._rows)


class Mixture(Iterator[Packed]):
    """Draws, renders and packs; iterate over it for as long as you like."""

    def __init__(
        self,
        sources: Sequence[Source],
        renderer: Renderer,
        length: int,
        seed: int,
        *,
        fingerprint: str | None = None,
        lookahead: int = 64,
    ) -> None:
        """Open the sources.

        Args:
            sources: What to draw from.
            renderer: Lays the rows out.
            length: Ids in a row.
            seed: Decides order and random choices, 0 or more.
            fingerprint: Fingerprint of the checkpoint's image tokenizer; None does not compare.
            lookahead: Examples in the packing buffer.

        Raises:
            ConfigError: There are no sources.
            DataError: A folder is not readable, was encoded with another tokenizer, or has no row
                for its task.
        """
        if not sources:
            raise ConfigError("sources: is empty. Name at least one folder of shards.")
        self._renderer = renderer
        self._seed = seed
        tokenizer = renderer.sequences.tokenizer
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(pad for pad in pads if pad is not None)
        self._packer: Packer[Ticket] = Packer(length, pad_id, lookahead)
        codebook_size = renderer.sequences.vocabulary.codebook_size
        opened = {
            path: read_shards(path) for path in dict.fromkeys(source.path for source in sources)
        }
        for path, shards in opened.items():
            _check_origin(path, shards, codebook_size, fingerprint)
        self._streams = [
            _Stream(source, opened[source.path], (seed, number))
            for number, source in enumerate(sources)
        ]
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]
        self._draws = [0] * len(sources)
        self._rows = 0
        self._filled = 0

    def __next__(self) -> Packed:
        while not self._packer.full:
            source = self._next_source()
            draw = self._draws[source]
            self._draws[source] += 1
            for piece, example in enumerate(self._pieces(source, draw)):
                self._packer.add((source, draw, piece), example)
        packed = self._packer.take()
        self._rows += 1
        self._filled += packed.filled
        return packed

    @property
    def fill(self) -> float:
        """Share of the ids so far that were not padding; 1 before the first row."""
        return self._filled / (self._rows * self._packer.length) if self._rows else 1.0

    @property
    def passes(self) -> tuple[float, ...]:
        """How often each source has been gone through, as a fraction."""
        return tuple(
            draws / len(stream) for draws, stream in zip(self._draws, self._streams, strict=True)
        )

    def state(self) -> dict[str, Any]:
        """Return the position in the stream as JSON-able values."""
        return {
            **self._identity(),
            "draws": list(self._draws),
            "waiting": [list(ticket) for ticket in self._packer.tickets],
            "rows": self._rows,
            "filled": self._filled,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned; the next rows are exactly those that followed.

        Raises:
            DataError: The position belongs to another seed, row length or set of sources.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"mixture: the saved position has {name} {state.get(name)}, this run "
                    f"has {value}. Resume with the data and settings of the saved run."
                )
        packer: Packer[Ticket] = Packer(
            self._packer.length, self._packer.pad_id, self._packer.lookahead
        )
        for source, draw, piece in state["waiting"]:
            packer.add((source, draw, piece), self._pieces(source, draw)[piece])
        self._packer = packer
        self._draws = list(state["draws"])
        self._rows = state["rows"]
        self._filled = state["filled"]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "length": self._packer.length,
            "lookahead": self._packer.lookahead,
            "sizes": [len(stream) for stream in self._streams],
            "tasks": [stream.task for stream in self._streams],
            "weights": list(self._weights),
        }

    def _next_source(self) -> int:
        """Return the source that is furthest behind its share; the first of equals."""
        total = sum(self._draws) + 1
        behind = [
            weight * total - draws for weight, draws in zip(self._weights, self._draws, strict=True)
        ]
        return behind.index(max(behind))

    def _pieces(self, source: int, draw: int) -> list[Example]:
        example = self._streams[source].example(self._renderer, draw)
        return split(example, self._packer.length)


def _check_origin(path: Path, shards: Shards, codebook_size: int, fingerprint: str | None) -> None:
    origin = shards.manifest.origin
    if origin.codebook_size != codebook_size:
        raise DataError(
            f"{path}: was encoded with {origin.codebook_size} codes, the checkpoint has "
            f"{codebook_size}. Encode with the checkpoint's image tokenizer."
        )
    if fingerprint is not None and origin.fingerprint != fingerprint:
        raise DataError(
            f"{path}: was encoded with the image tokenizer {origin.fingerprint}, the checkpoint "
            f"has {fingerprint}. Encode with the checkpoint's image tokenizer."
        )
