"""The engine: answers requests in tokens with one model.

The result of a request depends only on the request, including its seed, not on the other requests
in the batch. Only rounding that depends on the batch size can change it, and only between tokens
that are practically tied; with the "cpu" backend, not even that. An image has exactly h x w codes;
a text runs until a stop token or a limit. A request that cannot be answered fails on its own,
before any computation.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.generate.backends import (
    Backend,
    BackendKind,
    Quantization,
    choose_backend,
    context_length,
    make_backend,
)
from liquidmm.generate.batch import Batch
from liquidmm.generate.cuda_graphs import CudaGraphs
from liquidmm.generate.outputs import End, Event, ImageStep
from liquidmm.generate.requests import ImageRequest, TokenRequest
from liquidmm.generate.scheduler import Scheduler
from liquidmm.generate.state import ModelSpec, RequestHandle
from liquidmm.ranges import RangeChecked
from liquidmm.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
"""Called with the number of image tokens generated so far and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig(RangeChecked):
    """How to run a model. Only ``quantize`` changes the results."""

    slots: Annotated[int, Ge(2)] = 32
    """KV cache slots, which limit the sequences that run at once; a guided image needs two."""
    quantize: Quantization | None = None
    """"int8" quantizes the weights when they are loaded (CPU only); None keeps their dtype."""
    backend: BackendKind | None = None
    """"cpu" (compiled C), "torch" (fused PyTorch) or "transformers" (any family); None chooses the
    fastest that supports the model."""
    cuda_graphs: bool = False
    """Capture decoding steps as CUDA graphs; takes seconds, so it pays off for many images."""


class Engine:
    """Answers requests with one model. Threads can share an engine; they take turns."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        unconditional: Sequence[int],
        stop: Collection[int],
        config: EngineConfig | None = None,
        backend: Backend | None = None,
        graphs: CudaGraphs | None = None,
    ) -> None:
        """Prepare the engine; the backend is created for the first request.

        Args:
            model: Causal language model in eval mode.
            vocabulary: Token ids of text and codes.
            unconditional: Unconditional prompt for guidance, up to and including boi.
            stop: Tokens that end a text.
            config: How to run the model; None is the default.
            backend: Runs the model; None creates the one that ``config`` names.
            graphs: Captures decoding steps; None creates one if ``config`` asks for it.

        Raises:
            ConfigError: The model cannot be run with these settings.
        """
        self.config = config or EngineConfig()
        self.spec = ModelSpec(
            vocabulary=vocabulary,
            unconditional=tuple(unconditional),
            stop=frozenset(stop),
            context=context_length(model),
        )
        """Tokens and context length of the model."""
        self.context = self.spec.context
        """Maximum length of prompt and reply together, in tokens."""
        if self.config.cuda_graphs and model.device.type != "cuda":
            raise ConfigError(f"cuda_graphs: expected a CUDA device, got {model.device}.")
        self._model = model
        self.backend_kind = choose_backend(model, self.config.quantize, self.config.backend)
        self._backend = backend
        self._graphs = graphs or (CudaGraphs() if self.config.cuda_graphs else None)
        self._scheduler: Scheduler | None = None
        self._lock = threading.RLock()

    def check(self, request: TokenRequest) -> None:
        """Check that a request can be answered.

        Raises:
            DataError: The prompt is empty or too long.
            ConfigError: A setting does not fit the model.
        """
        vocabulary, length = self.spec.vocabulary, len(request.prompt)
        if not length:
            raise DataError("prompt: is empty.")
        needed, unit, codes_sampling = 1, "text token", request.sampling
        if isinstance(request, ImageRequest):
            needed, unit = request.grid[0] * request.grid[1], "image tokens"
        else:
            request.sampling.check_vocabulary(vocabulary.text_size, "text tokens")
            codes_sampling = request.image_sampling
        if request.grid is not None:
            if min(request.grid) < 1:
                height, width = request.grid
                raise ConfigError(f"grid: expected at least 1 x 1, got {height} x {width}.")
            codes_sampling.check_vocabulary(vocabulary.codebook_size, "codes in the codebook")
        if length + needed > self.context:
            raise DataError(
                f"prompt: {length} tokens and {needed} {unit} exceed the model's context of "
                f"{self.context} tokens. Shorten the prompt."
            )

    def submit(self, request: TokenRequest, index: int = 0) -> RequestHandle:
        """Check and queue a request; `step` and `run` answer it. The handle gets ``index``."""
        self.check(request)
        handle = RequestHandle(request=request, index=index)
        with self._lock:
            if self._scheduler is None:
                backend = self._backend or make_backend(
                    self._model, self.backend_kind, self.config.quantize
                )
                batch = Batch(backend, self.spec, self._graphs)
                self._scheduler = Scheduler(batch, self.spec, self.config.slots)
            self._scheduler.add(handle)
        return handle

    def cancel(self, handle: RequestHandle) -> None:
        """Stop a request and drop its unread events."""
        with self._lock:
            if not handle.done and self._scheduler is not None:
                self._scheduler.drop(handle)
            handle.done = True
            handle.events.clear()

    def step(self) -> bool:
        """Sample one token for every running request; return whether there is more to do.

        Raises:
            CheckpointError: The model's logits contain NaN.
        """
        with self._lock:
            if self._scheduler is None:
                return False
            self._scheduler.step()
            return self._scheduler.busy

    def run(
        self, requests: Sequence[TokenRequest], progress: Progress | None = None
    ) -> Iterator[tuple[RequestHandle, Event]]:
        """Answer requests together.

        Args:
            requests: Any mix of requests.
            progress: Called after every step with the image tokens of `ImageRequest`s.

        Yields:
            The handle of a request, whose ``index`` is its position in ``requests``, and its next
            event. The last event of each request is an `End`, which contains the error if the
            request is invalid. A request passed to `cancel` yields nothing more. Closing the
            iterator cancels the remaining requests.

        Raises:
            CheckpointError: The model's logits contain NaN.
        """
        handles = []
        try:
            for index, request in enumerate(requests):
                try:
                    handles.append(self.submit(request, index))
                except LiquidError as error:
                    handles.append(RequestHandle(request=request, index=index))
                    handles[-1].end(End(finish="error", error=error))
            images = [
                one for one in handles if isinstance(one.request, ImageRequest) and not one.done
            ]
            total = sum(math.prod(one.request.grid or ()) for one in images)
            pending = handles
            while pending:
                for handle in pending:
                    while handle.events:
                        yield handle, handle.events.popleft()
                with self._lock:  # another thread may have advanced these requests
                    pending = [one for one in pending if one.events or not one.done]
                    if not pending or any(one.events for one in pending):
                        continue
                    self.step()
                if progress is not None:
                    progress(sum(handle.sampled for handle in images), total)
        finally:
            for handle in handles:
                self.cancel(handle)

    def generate_codes(
        self, requests: Sequence[ImageRequest], progress: Progress | None = None
    ) -> list[Tensor]:
        """Return the codes of each image, (h, w), int64, on the CPU; errors as in `check`."""
        codes: dict[int, Tensor] = {}
        for handle, event in self.run(requests, progress):
            if isinstance(event, End) and event.error is not None:
                raise event.error
            if isinstance(event, ImageStep):
                codes[handle.index] = event.codes
        return [codes[index] for index in range(len(requests))]
