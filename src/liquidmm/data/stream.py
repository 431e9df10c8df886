"""The endless stream of packed sequences that training reads.

The samples of the mixture are divided into buffers of `packing_buffer` samples, and each buffer is
packed on its own. Sequences are produced in parallel streams: buffer b belongs to stream b mod n,
so the data does not depend on the number of ranks or workers. A stream's position is only its
buffer and the index in it; loading a position rebuilds one buffer and resumes exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from liquidmm.data.examples import Example, ExampleBuilder
from liquidmm.data.mixture import (
    BUFFER,
    ShuffledSource,
    Source,
    WeightedSampler,
    check_sources,
    open_sources,
)
from liquidmm.data.packing import PackedBuffer, PackedSequence, PackingConfig, pack
from liquidmm.data.prefetch import Prefetcher
from liquidmm.errors import DataError
from liquidmm.runtime import get_logger

_MAX_NAMED = 5
"""Maximum number of dropped records that are logged by key."""

_LOG = get_logger(__name__)


class TokenStream:
    """Samples, builds and packs examples in parallel streams."""

    def __init__(
        self,
        sources: Sequence[Source],
        builder: ExampleBuilder,
        packing: PackingConfig,
        seed: int,
        *,
        num_streams: int = 1,
        tokenizer_fingerprint: str | None = None,
        num_workers: int = 0,
    ) -> None:
        """Open the sources.

        Args:
            sources: Sources to sample from.
            builder: Builds the examples.
            packing: How to pack sequences.
            seed: Seed of the order and of random choices, at least 0.
            num_streams: Number of parallel streams; the sequences depend on it.
            tokenizer_fingerprint: Fingerprint of the checkpoint's image tokenizer; None skips the
                check.
            num_workers: Processes that pack buffers ahead of time; 0 packs them on demand.

        Raises:
            ConfigError: There are no sources, or all weights are 0.
            DataError: A folder cannot be read, was encoded with another image tokenizer, or has no
                samples for its task.
        """
        check_sources(sources)
        self._sources = tuple(sources)
        self._packing = packing
        self._seed = seed
        self._num_streams = num_streams
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]
        self._opened = open_sources(sources, builder, seed, tokenizer_fingerprint)
        tokenizer = builder.sequences.tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(token for token in candidates if token is not None)
        sampler = WeightedSampler([source.weight for source in sources])
        make_buffer = partial(_make_buffer, self._opened, sampler, packing, pad_id, seed)
        self._buffers = Prefetcher(make_buffer, num_workers)
        self._streams: dict[int, _Stream] = {}
        self._named = 0
        self._repeating: set[Source] = set()

    def next(self, streams: Iterable[int] = (0,)) -> list[PackedSequence]:
        """Return the next sequence of each given stream, numbered from 0.

        Raises:
            DataError: A record is damaged, does not fit its task, or is too long.
            LiquidError: A worker process was killed.
        """
        chosen = [self._stream(number) for number in streams]
        used_up = [stream for stream in chosen if stream.is_used_up]
        for ahead in (1, 2):
            self._buffers.submit([stream.buffer_number(stream.turn + ahead) for stream in used_up])
        for stream in used_up:
            self._log_dropped(stream.advance())
        if used_up:
            self._log_repeats()
        return [stream.next() for stream in chosen]

    def example(self, source: int, index: int) -> Example:
        """Return one example of one source, before packing; the position does not change.

        Different indices below the source's size give different samples.
        """
        return self._opened[source][index]

    def buffer(self, number: int) -> PackedBuffer:
        """Return one packed buffer; the position does not change."""
        return self._buffers.get(number)

    @property
    def packing_efficiency(self) -> float:
        """Fraction of non-padding tokens in the sequences read so far; 1 before the first one."""
        sequences = sum(stream.sequences for stream in self._streams.values())
        tokens = sum(stream.tokens for stream in self._streams.values())
        return tokens / (sequences * self._packing.seq_len) if sequences else 1.0

    @property
    def epochs(self) -> tuple[float, ...]:
        """Number of epochs over each source, including fractions.

        Computed from the streams read by this object, assuming the others have progressed equally.
        """
        streams = self._streams.values()
        buffers = sum(stream.buffers for stream in streams) * self._num_streams
        samples = buffers / max(1, len(streams)) * self._packing.packing_buffer
        return tuple(
            samples * weight / opened.size
            for weight, opened in zip(self._weights, self._opened, strict=True)
        )

    @property
    def dropped(self) -> int:
        """Number of samples in the buffers read by this object that were dropped as too long."""
        return sum(stream.dropped for stream in self._streams.values())

    def state_dict(self) -> dict[str, Any]:
        """Return fingerprint and positions of the streams read, as JSON-compatible values."""
        streams = {str(number): each.state_dict() for number, each in sorted(self._streams.items())}
        return {**self.fingerprint(), "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved position; the next sequences are exactly those that followed it.

        The streams of several states can be merged into one.

        Raises:
            DataError: The position belongs to other data or settings.
        """
        for name, value in self.fingerprint().items():
            if state.get(name) != value:
                raise DataError(
                    f"data: the checkpoint was saved with {name} {state.get(name)}, but this run "
                    f"has {value}. Resume with the same data and settings."
                )
        self._streams = {}
        positions = [(self._stream(int(name)), each) for name, each in state["streams"].items()]
        self._buffers.submit([stream.buffer_number(each["buffer"]) for stream, each in positions])
        for stream, position in positions:
            stream.load_state_dict(position)

    def fingerprint(self) -> dict[str, Any]:
        """Return the values that determine the sequences, in JSON-compatible form."""
        return {
            "seed": self._seed,
            "seq_len": self._packing.seq_len,
            "max_document_tokens": self._packing.document_limit,
            "packing_buffer": self._packing.packing_buffer,
            "overlong": self._packing.overlong,
            "num_streams": self._num_streams,
            "sizes": [opened.size for opened in self._opened],
            "tasks": [source.task for source in self._sources],
            "weights": list(self._weights),
            "swap_ratios": [source.swap_ratio for source in self._sources],
        }

    def close(self) -> None:
        """Stop the worker processes."""
        self._buffers.close()

    def _stream(self, number: int) -> "_Stream":
        if number not in self._streams:
            self._streams[number] = _Stream(number, self._num_streams, self._buffers)
        return self._streams[number]

    def _log_dropped(self, buffer: PackedBuffer) -> None:
        for key, size in buffer.dropped[: max(0, _MAX_NAMED - self._named)]:
            self._named += 1
            limit = self._packing.document_limit
            rest = "; further records are only counted" if self._named == _MAX_NAMED else ""
            _LOG.warning("%s: dropped: %d tokens exceed %d%s", key, size, limit, rest)

    def _log_repeats(self) -> None:
        for source, opened, epochs in zip(self._sources, self._opened, self.epochs, strict=True):
            if epochs > 1 and source not in self._repeating:
                self._repeating.add(source)
                if 0 in self._streams:  # log on one rank only
                    message = "%s (%s): its %d samples start to repeat"
                    _LOG.info(message, source.path, source.task, opened.size)


class _Stream:
    """One of several streams that take turns with the buffers."""

    def __init__(self, number: int, num_streams: int, buffers: Prefetcher[PackedBuffer]) -> None:
        self._number = number
        self._num_streams = num_streams
        self._buffers = buffers
        self._buffer: PackedBuffer | None = None
        self._index = 0
        self.turn = -1
        """Index of the current buffer among the stream's buffers; -1 before the first one."""
        self.dropped = 0
        """Samples dropped in the buffers so far."""
        self.sequences = 0
        """Sequences returned by this object."""
        self.tokens = 0
        """Non-padding tokens in these sequences."""

    @property
    def is_used_up(self) -> bool:
        """Whether the current buffer is used up."""
        return self._buffer is None or self._index >= len(self._buffer)

    @property
    def buffers(self) -> float:
        """Number of buffers read, counting the current one as a fraction."""
        return self.turn + self._index / len(self._buffer) if self._buffer is not None else 0.0

    def buffer_number(self, turn: int) -> int:
        """Return the global number of a buffer of this stream."""
        return self._number + turn * self._num_streams

    def advance(self) -> PackedBuffer:
        """Go to the next buffer and return it."""
        buffer = self._buffers.get(self.buffer_number(self.turn + 1))
        if not len(buffer):
            raise DataError(
                f"data: all {len(buffer.dropped)} examples of a buffer are longer than "
                f"{buffer.config.document_limit} tokens, for example {buffer.dropped[0][0]}. "
                "Increase data.seq_len."
            )
        self.turn += 1
        self._buffer, self._index = buffer, 0
        self.dropped += len(buffer.dropped)
        return buffer

    def next(self) -> PackedSequence:
        """Return the next sequence of the current buffer."""
        assert self._buffer is not None
        packed = self._buffer[self._index]
        self._index += 1
        self.sequences += 1
        self.tokens += packed.num_tokens
        return packed

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"buffer": self.turn, "index": self._index, "dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore a position."""
        self.turn, self._index, self.dropped = state["buffer"], state["index"], state["dropped"]
        self._buffer = self._buffers.get(self.buffer_number(self.turn))


def _make_buffer(
    sources: Sequence[ShuffledSource],
    sampler: WeightedSampler,
    packing: PackingConfig,
    pad_id: int,
    seed: int,
    number: int,
) -> PackedBuffer:
    size = packing.packing_buffer
    places = (sampler[index] for index in range(number * size, (number + 1) * size))
    examples = [sources[source][index] for source, index in places]
    return pack(examples, packing, pad_id, (BUFFER, seed, number))
