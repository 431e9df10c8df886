"""Endless streams of packed rows, drawn from several sources by weight.

Contract: the draws of the mixture are cut into windows of so many; the rows of a window are a pure
function of the seed and its number. Rows come in lanes, which take the windows in turn, each window
in one lane: the rows of a lane don't depend on who takes them, so any number of ranks that divide
the lanes among them see the same data, none of it twice, and so does any number of processes that
make windows ahead. The position of a lane is its window and the row in it: three small numbers with
the count of what was left out, however long the run. Restoring it makes one window again and
continues bit by bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from liquidmm.data.draws import WINDOW, Draws, Source, check_sources, mix, open_sources
from liquidmm.data.examples import Example, ExampleBuilder
from liquidmm.data.packing import PackedSequence, PackingConfig, Window, pack
from liquidmm.data.prefetch import Ahead
from liquidmm.errors import DataError
from liquidmm.runtime import get_logger

_NAMED = 5
"""Records that are left out are named so many times."""

_LOG = get_logger(__name__)


class TokenStream:
    """Draws, renders and packs, in lanes."""

    def __init__(
        self,
        sources: Sequence[Source],
        renderer: ExampleBuilder,
        packing: PackingConfig,
        seed: int,
        *,
        lanes: int = 1,
        fingerprint: str | None = None,
        workers: int = 0,
    ) -> None:
        """Open the sources.

        Args:
            sources: What to draw from.
            renderer: Lays the rows out.
            packing: How rows are filled.
            seed: Decides order and random choices, 0 or more.
            lanes: Number of lanes; another number is another stream.
            fingerprint: Fingerprint of the checkpoint's image tokenizer; None does not compare.
            workers: Processes that make windows ahead; 0 makes them when they are needed.

        Raises:
            ConfigError: There are no sources, or their weights sum to nothing.
            DataError: A folder is not readable, was encoded with another tokenizer, or has no row
                for its task.
        """
        check_sources(sources)
        self._seed = seed
        self._packing = packing
        self._count = lanes
        self._sources = tuple(sources)
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]
        opened = open_sources(sources, renderer, seed, fingerprint)
        self._sizes = [size for size, _ in opened]
        self._draws = [draws for _, draws in opened]
        tokenizer = renderer.sequences.tokenizer
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(pad for pad in pads if pad is not None)
        mixed = mix(self._draws, [source.weight for source in sources])
        self._windows = Ahead[Window](_Windows(mixed, packing, pad_id, seed), workers)
        self._lanes: dict[int, _Lane] = {}
        self._named = 0
        self._again: set[Source] = set()

    def __len__(self) -> int:
        return len(self._draws)

    def take(self, lanes: Iterable[int] = (0,)) -> list[PackedSequence]:
        """Take the next row of some lanes.

        Args:
            lanes: Numbers of lanes, from 0.

        Returns:
            One row for each, in order.

        Raises:
            DataError: A record is damaged, doesn't fit its task, or is too long.
            LiquidError: A process that makes windows was killed.
        """
        chosen = [self._lane(number) for number in lanes]
        due = [lane for lane in chosen if lane.used_up]
        for ahead in (1, 2):
            self._windows.announce([lane.number_of(lane.turn + ahead) for lane in due])
        for lane in due:
            self._name(lane.go_on())
        if due:
            self._tell_passes()
        return [lane.take() for lane in chosen]

    def example(self, source: int, draw: int) -> Example:
        """Render one draw of one source; the stream stays where it is.

        Args:
            source: Place of the source, from 0.
            draw: Number of the draw, from 0; draws below the source's rows differ in their rows.

        Returns:
            The example, longer than a row where it is to be cut.
        """
        example: Example = self._draws[source][draw]
        return example

    def window(self, number: int) -> Window:
        """Make one window; the stream stays where it is."""
        return self._windows.take(number)

    @property
    def fill(self) -> float:
        """Share of the ids taken from this object that were not padding; 1 before the first row."""
        rows = sum(lane.rows for lane in self._lanes.values())
        filled = sum(lane.filled for lane in self._lanes.values())
        return filled / (rows * self._packing.length) if rows else 1.0

    @property
    def passes(self) -> tuple[float, ...]:
        """How often the stream went through the rows of each source, as a fraction.

        Worked out from the lanes taken from; the others are taken to be as far.
        """
        lanes = self._lanes.values()
        windows = sum(lane.windows for lane in lanes) * self._count / max(1, len(lanes))
        draws = windows * self._packing.window
        return tuple(
            draws * weight / size for weight, size in zip(self._weights, self._sizes, strict=True)
        )

    @property
    def left_out(self) -> int:
        """Draws that were too long in the windows that the lanes taken from have begun."""
        return sum(lane.left_out for lane in self._lanes.values())

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
        positions = [(self._lane(int(name)), each) for name, each in state["lanes"].items()]
        self._windows.announce([lane.number_of(each["window"]) for lane, each in positions])
        for lane, position in positions:
            lane.restore(position)

    def identity(self) -> dict[str, Any]:
        """Return what decides the stream, as JSON-able values."""
        return {
            "seed": self._seed,
            "length": self._packing.length,
            "context": self._packing.longest,
            "window": self._packing.window,
            "too_long": self._packing.too_long,
            "lanes_in_all": self._count,
            "sizes": list(self._sizes),
            "tasks": [source.task for source in self._sources],
            "weights": list(self._weights),
            "reverse": [source.reverse for source in self._sources],
        }

    def close(self) -> None:
        """End the processes that make windows."""
        self._windows.close()

    def _lane(self, number: int) -> "_Lane":
        if number not in self._lanes:
            self._lanes[number] = _Lane(number, self._count, self._windows)
        return self._lanes[number]

    def _name(self, window: Window) -> None:
        """Name the first records that are left out."""
        for key, size in window.left_out[: max(0, _NAMED - self._named)]:
            self._named += 1
            _LOG.warning(
                "%s: left out, %d ids do not fit a row%s",
                key,
                size,
                "; further ones are only counted" if self._named == _NAMED else "",
            )

    def _tell_passes(self) -> None:
        """Say once for each source that its rows come again."""
        for source, size, passes in zip(self._sources, self._sizes, self.passes, strict=True):
            if passes > 1 and source not in self._again:
                self._again.add(source)
                if 0 in self._lanes:  # one rank is enough
                    _LOG.info("%s (%s): its %d rows come again", source.path, source.task, size)


class _Lane:
    """One of several streams that take the windows in turn."""

    def __init__(self, number: int, lanes: int, windows: Ahead[Window]) -> None:
        self._number = number
        self._lanes = lanes
        self._windows = windows
        self._window: Window | None = None
        self._row = 0
        self.turn = -1
        """Which of the lane's windows it is in; before the first one -1."""
        self.left_out = 0
        """Draws left out in the windows begun so far."""
        self.rows = 0
        """Rows taken from this object."""
        self.filled = 0
        """Ids in them that are not padding."""

    @property
    def used_up(self) -> bool:
        """Whether the next row is in another window."""
        return self._window is None or self._row >= len(self._window)

    @property
    def windows(self) -> float:
        """Windows gone through, the last one as a fraction."""
        return self.turn + self._row / len(self._window) if self._window is not None else 0.0

    def number_of(self, turn: int) -> int:
        """Return the number of a window of the lane."""
        return self._number + turn * self._lanes

    def go_on(self) -> Window:
        """Go to the next window."""
        window = self._windows.take(self.number_of(self.turn + 1))
        if not len(window):
            raise DataError(
                f"data: all of {len(window.left_out)} examples are longer than "
                f"{window.config.longest} ids, {window.left_out[0][0]} for one. Use longer rows."
            )
        self.turn += 1
        self._window, self._row = window, 0
        self.left_out += len(window.left_out)
        return window

    def take(self) -> PackedSequence:
        """Take the next row."""
        assert self._window is not None
        packed = self._window[self._row]
        self._row += 1
        self.rows += 1
        self.filled += packed.filled
        return packed

    def state(self) -> dict[str, int]:
        """Return the position."""
        return {"window": self.turn, "row": self._row, "left_out": self.left_out}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to a position."""
        self.turn, self._row, self.left_out = state["window"], state["row"], state["left_out"]
        self._window = self._windows.take(self.number_of(self.turn))


class _Windows:
    """Windows by number; pickled for the processes that make them."""

    def __init__(self, draws: Draws, packing: PackingConfig, pad_id: int, seed: int) -> None:
        self._batches = draws.batch(packing.window, batch_fn=list)
        self._packing = packing
        self._pad_id = pad_id
        self._seed = seed

    def __getitem__(self, number: int) -> Window:
        examples: list[Example] = self._batches[number]
        return pack(examples, self._packing, self._pad_id, (WINDOW, self._seed, number))
