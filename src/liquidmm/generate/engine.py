"""The engine: requests of ids to pictures and text, with one model.

Contract: a request holds all it needs and its own seed, and what comes back for it is the same
alone, in a batch and in any place of it, streamed or not. Only where a device rounds sums of a
larger batch in another order may a draw differ, and only between ids that came out equal but for
that rounding (never with the native decoder). A picture is exactly height x width codes. Text
runs until a stop id, or a limit, which is then told. Ids in, ids and codes out: words and pixels
are `liquid`'s business. Nothing here is clamped; a request that can't be answered is an error
before anything is computed for it, and only for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.generate.batch import Batch
from liquidmm.generate.decoders.choice import Kind, choose_decoder, make_decoder
from liquidmm.generate.decoders.decoder import Decoder, Weights, context_of
from liquidmm.generate.graphs import Graphs
from liquidmm.generate.requests import (
    End,
    ImageRequest,
    ImageStep,
    Request,
    Step,
    Text,
    TextRequest,
    TextStep,
)
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.scheduler import Answer, Scheduler, Settings
from liquidmm.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
"""Called with (codes drawn so far, codes to draw in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How a model is run; results don't depend on it, except `weights`."""

    rows: int = 32
    """Sequences that run at once, at least 2; a guided picture takes two."""
    weights: Weights | None = None
    """How weights are held while drawing: "float32", "bfloat16" or, on a CPU, "int8"; None keeps
    the type they were loaded in."""
    decoder: Kind | None = None
    """What runs the model: "native" (C, on a CPU) and "packed" (PyTorch) know families that are
    written by hand, "family" runs transformers' code for all; None takes the first that can."""
    graphs: bool = False
    """Record passes as CUDA graphs. Recording takes seconds, so it pays for many pictures."""
    window: int = 0
    """Codes that a lone picture may draw in a pass, by speculation; 0 is off."""

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise ConfigError(f"rows: must be at least 2 ({self.rows}). Ask for more.")
        if self.window < 0 or self.window == 1:
            raise ConfigError(f"window: must be 0 (off) or at least 2 ({self.window}).")


class Engine:
    """Answers requests with one model. Threads may share it; they take turns."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        unconditional: Sequence[int],
        stop: Collection[int],
        config: EngineConfig | None = None,
    ) -> None:
        """Prepare; the weights are laid out at the first request.

        Args:
            model: Causal language model in eval mode.
            vocabulary: Where its text and image ids lie.
            unconditional: Prompt of guidance, up to and including boi.
            stop: Ids that end a text.
            config: How the model is run; None takes the defaults.

        Raises:
            ConfigError: The model can't be run that way.
        """
        self.vocabulary = vocabulary
        self.stop = frozenset(stop)
        self.config = config or EngineConfig()
        self.context = context_of(model)
        """Ids the model can take in, prompt and result together."""
        self.kind = choose_decoder(model, self.config.weights, self.config.decoder)
        """What runs the model."""
        self._model = model
        self._unconditional = tuple(unconditional)
        self._decoder: Decoder | None = None
        self._scheduler: Scheduler | None = None
        self._lock = threading.RLock()
        self._check_config()

    @property
    def decoder(self) -> Decoder:
        """The language model and its cache."""
        if self._decoder is None:
            self._decoder = make_decoder(self._model, self.config.weights, self.kind)
        return self._decoder

    def check(self, request: Request) -> None:
        """Refuse a request that can't be answered.

        Raises:
            DataError: The prompt is empty or leaves no room.
            ConfigError: A setting doesn't fit the model.
        """
        if not request.prompt:
            raise DataError("prompt: holds no id. Begin with at least one.")
        if isinstance(request, ImageRequest):
            self._check_grid(request.grid, request.sampling)
            self._check_room(len(request.prompt), request.grid[0] * request.grid[1], "codes")
            return
        request.sampling.check_vocabulary(self.vocabulary.text_size, "ids of text")
        if request.grid is not None:
            self._check_grid(request.grid, request.picture_sampling)
        self._check_room(len(request.prompt), 1, "token of text")

    def submit(self, request: Request) -> Answer:
        """Take a request; it is answered while `step` or `follow` is called.

        Raises:
            DataError: The prompt is empty or leaves no room.
            ConfigError: A setting doesn't fit the model.
        """
        self.check(request)
        answer = Answer(request)
        with self._lock:
            self._schedule().add(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop answering; nothing happens where it is done."""
        with self._lock:
            if not answer.done:
                self._schedule().drop(answer)

    def step(self) -> bool:
        """Let every running request draw once.

        Returns:
            Whether there is more to do.

        Raises:
            CheckpointError: The model's scores hold NaN.
        """
        with self._lock:
            scheduler = self._schedule()
            scheduler.step()
            return scheduler.busy

    def follow(self, answer: Answer) -> Iterator[Step]:
        """Yield the steps of an answer as they come, up to its end; breaking off cancels it."""
        try:
            while not answer.done or answer.steps:
                while answer.steps:
                    yield answer.steps.popleft()
                with self._lock:
                    if not answer.done:
                        self.step()
        finally:
            self.cancel(answer)

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Step]]:
        """Answer several requests at once.

        Args:
            requests: Any mix.

        Yields:
            (place of the request, step), as they come. A request that is wrong gets an `End` that
            holds its error; the others are answered.

        Raises:
            CheckpointError: The model's scores hold NaN.
        """
        open_answers: dict[int, Answer] = {}
        try:
            for place, request in enumerate(requests):
                try:
                    open_answers[place] = self.submit(request)
                except LiquidError as error:
                    yield place, End(finish="error", error=error)
            while open_answers:
                for place, answer in list(open_answers.items()):
                    while answer.steps:
                        yield place, answer.steps.popleft()
                    if answer.done:
                        del open_answers[place]
                if open_answers:
                    self.step()
        finally:
            for answer in open_answers.values():
                self.cancel(answer)

    def pictures(
        self, requests: Sequence[ImageRequest], *, progress: Progress | None = None
    ) -> list[Tensor]:
        """Draw pictures.

        Args:
            requests: Any mix; as many as there are rows for are drawn at once.
            progress: Told after every pass.

        Returns:
            Codes of each request, (h, w), int64, on the CPU, in order.

        Raises:
            DataError: A prompt leaves no room for its codes.
            ConfigError: A setting doesn't fit the model.
        """
        for request in requests:
            self.check(request)
        total = sum(request.grid[0] * request.grid[1] for request in requests)
        answers = [self.submit(request) for request in requests]
        try:
            while not all(answer.done for answer in answers):
                self.step()
                if progress is not None:
                    progress(sum(answer.drawn for answer in answers), total)
        finally:
            for answer in answers:
                self.cancel(answer)
        steps = [step for answer in answers for step in answer.steps]
        return [step.codes for step in steps if isinstance(step, ImageStep)]

    def texts(self, requests: Sequence[TextRequest]) -> list[Text]:
        """Write texts.

        Args:
            requests: Any mix; pictures inside them are left out of what is returned.

        Returns:
            The texts, in order.

        Raises:
            DataError: A prompt fills the context.
            ConfigError: A setting doesn't fit the model.
        """
        for request in requests:
            self.check(request)
        ids: list[list[int]] = [[] for _ in requests]
        ends: dict[int, End] = {}
        for place, step in self.answers(requests):
            if isinstance(step, TextStep):
                ids[place].append(step.id)
            elif isinstance(step, End):
                ends[place] = step
        return [Text(ids=tuple(row), finish=ends[place].finish) for place, row in enumerate(ids)]

    def stream(self, request: Request) -> Iterator[Step]:
        """Answer one request step by step; the last step is the only `End`.

        Raises:
            DataError: The prompt leaves no room.
            ConfigError: A setting doesn't fit the model.
        """
        yield from self.follow(self.submit(request))

    def _schedule(self) -> Scheduler:
        if self._scheduler is None:
            graphs = Graphs() if self.config.graphs else None
            batch = Batch(self.decoder, self.vocabulary, self._unconditional, self.context, graphs)
            settings = Settings(
                vocabulary=self.vocabulary,
                unconditional=self._unconditional,
                stop=self.stop,
                context=self.context,
                rows=self.config.rows,
                window=self.config.window,
            )
            self._scheduler = Scheduler(batch, settings)
        return self._scheduler

    def _check_config(self) -> None:
        device = self._model.device
        if self.config.graphs and device.type != "cuda":
            raise ConfigError(f"graphs: needs a CUDA device ({device}). Leave it off here.")

    def _check_grid(self, grid: tuple[int, int], sampling: SamplingConfig) -> None:
        if min(grid) < 1:
            raise ConfigError(f"grid: must be at least 1 x 1 ({grid[0]} x {grid[1]}).")
        sampling.check_vocabulary(self.vocabulary.codebook_size, "codes of the codebook")

    def _check_room(self, prompt: int, needed: int, what: str) -> None:
        if prompt + needed > self.context:
            raise DataError(
                f"prompt: {prompt} ids and {needed} {what} don't fit the model's context of "
                f"{self.context} ids. Shorten the prompt."
            )
