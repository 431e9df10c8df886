"""Endless streams of packed rows, drawn from several sources by weight.

Contract: draw number n of a source is a pure function of (seed, source, n): each pass has an order
of its own, and each draw a generator for the random choices of rendering. The stream comes in
lanes, which share the draws among them and are packed by themselves: the rows of a lane don't
depend on who takes them, so any number of ranks that divide the lanes among them see the same data.
Which source is next follows from a lane's counts alone: the one furthest behind its share, so that
no source is ever a whole draw ahead of its share, and few are more than one behind. The state is
therefore a few counts and the draws that wait to be packed; restoring it continues bit by bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
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
        self._seeds = seeds
        self._rows = shards.of_kind(KINDS[source.task])
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
        row = self._rows[int(self._order(turn)[place])]
        return renderer.render(row, self.task, np.random.default_rng([*self._seeds, 1, draw]))

    def _permutation(self, turn: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([*self._seeds, 0, turn]).permutation(len(self._rows))


class Mixture:
    """Draws, renders and packs, in lanes."""

    def __init__(
        self,
        sources: Sequence[Source],
        renderer: Renderer,
        length: int,
        seed: int,
        *,
        lanes: int = 1,
        fingerprint: str | None = None,
        lookahead: int = 64,
    ) -> None:
        """Open the sources.

        Args:
            sources: What to draw from.
            renderer: Lays the rows out.
            length: Ids in a row.
            seed: Decides order and random choices, 0 or more.
            lanes: Number of lanes; another number is another stream.
            fingerprint: Fingerprint of the checkpoint's image tokenizer; None does not compare.
            lookahead: Examples in the packing buffer of a lane.

        Raises:
            ConfigError: There are no sources.
            DataError: A folder is not readable, was encoded with another tokenizer, or has no row
                for its task.
        """
        if not sources:
            raise ConfigError("sources: is empty. Name at least one folder of shards.")
        self._seed = seed
        self._renderer = renderer
        self._length = length
        self._lookahead = lookahead
        self._count = lanes
        tokenizer = renderer.sequences.tokenizer
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(pad for pad in pads if pad is not None)
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
        self._lanes: dict[int, _Lane] = {}
        self._new_lane = partial(
            _Lane,
            streams=self._streams,
            weights=self._weights,
            renderer=renderer,
            packer=partial(Packer, length, pad_id, lookahead),
            lanes=lanes,
        )

    def take(self, lanes: Iterable[int] = (0,)) -> list[Packed]:
        """Take the next row of some lanes.

        Args:
            lanes: Numbers of lanes, from 0.

        Returns:
            One row for each, in order.
        """
        return [self._lane(number).take() for number in lanes]

    def example(self, source: int, draw: int) -> Example:
        """Render one draw of one source; the stream stays where it is.

        Args:
            source: Place of the source, from 0.
            draw: Number of the draw, from 0; draws below the source's rows differ in their rows.

        Returns:
            The example, longer than a row where it is to be cut.
        """
        return self._streams[source].example(self._renderer, draw)

    @property
    def fill(self) -> float:
        """Share of the ids taken so far that were not padding; 1 before the first row."""
        rows = sum(lane.rows for lane in self._lanes.values())
        filled = sum(lane.filled for lane in self._lanes.values())
        return filled / (rows * self._length) if rows else 1.0

    @property
    def passes(self) -> tuple[float, ...]:
        """How often the lanes taken from went through each source, as a fraction."""
        draws = [sum(lane.draws[n] for lane in self._lanes.values()) for n in range(len(self))]
        return tuple(
            drawn / len(stream) for drawn, stream in zip(draws, self._streams, strict=True)
        )

    def __len__(self) -> int:
        return len(self._streams)

    def state(self) -> dict[str, Any]:
        """Return the position of the lanes taken from as JSON-able values."""
        lanes = {str(number): lane.state() for number, lane in sorted(self._lanes.items())}
        return {**self.identity(), "lanes": lanes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned; the next rows are exactly those that followed.

        The lanes of several states may have been put into one: a lane that is then taken from goes
        on where it was.

        Raises:
            DataError: The position belongs to another seed, row length or set of sources.
        """
        for name, value in self.identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"mixture: the saved position has {name} {state.get(name)}, this run "
                    f"has {value}. Resume with the data and settings of the saved run."
                )
        self._lanes = {}
        for number, position in state["lanes"].items():
            self._lane(int(number)).restore(position)

    def identity(self) -> dict[str, Any]:
        """Return what decides the stream, as JSON-able values."""
        return {
            "seed": self._seed,
            "length": self._length,
            "lookahead": self._lookahead,
            "lanes_in_all": self._count,
            "sizes": [len(stream) for stream in self._streams],
            "tasks": [stream.task for stream in self._streams],
            "weights": list(self._weights),
        }

    def _lane(self, number: int) -> "_Lane":
        if number not in self._lanes:
            self._lanes[number] = self._new_lane(number)
        return self._lanes[number]


class _Lane:
    """One of several streams that share the draws of all sources among them."""

    def __init__(
        self,
        number: int,
        *,
        streams: Sequence[_Stream],
        weights: Sequence[float],
        renderer: Renderer,
        packer: Callable[[], Packer[Ticket]],
        lanes: int,
    ) -> None:
        self._number = number
        self._streams = streams
        self._weights = weights
        self._renderer = renderer
        self._new_packer = packer
        self._step = lanes
        self._packer = packer()
        self.draws = [0] * len(streams)
        """Draws of each source so far."""
        self.rows = 0
        """Rows taken."""
        self.filled = 0
        """Ids in them that are not padding."""

    def take(self) -> Packed:
        """Take the next row."""
        while not self._packer.full:
            source = self._next_source()
            draw = self.draws[source]
            self.draws[source] += 1
            for piece, example in enumerate(self._pieces(source, draw)):
                self._packer.add((source, draw, piece), example)
        packed = self._packer.take()
        self.rows += 1
        self.filled += packed.filled
        return packed

    def state(self) -> dict[str, Any]:
        """Return the position."""
        return {
            "draws": list(self.draws),
            "waiting": [list(ticket) for ticket in self._packer.tickets],
            "rows": self.rows,
            "filled": self.filled,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._packer = self._new_packer()
        for source, draw, piece in state["waiting"]:
            self._packer.add((source, draw, piece), self._pieces(source, draw)[piece])
        self.draws = list(state["draws"])
        self.rows = state["rows"]
        self.filled = state["filled"]

    def _next_source(self) -> int:
        """Return the source that is furthest behind its share; the first of equals."""
        total = sum(self.draws) + 1
        behind = [
            weight * total - draws for weight, draws in zip(self._weights, self.draws, strict=True)
        ]
        return behind.index(max(behind))

    def _pieces(self, source: int, draw: int) -> list[Example]:
        # The lanes take turns, so that together they draw every row of a pass exactly once.
        turn = draw * self._step + self._number
        example = self._streams[source].example(self._renderer, turn)
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
