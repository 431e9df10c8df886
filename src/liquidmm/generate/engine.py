"""Requests of ids to pictures and text: batching, seeds, stopping, and the switch between the two.

Contract: a request holds all it needs and its own seed, and what comes back for it is the same
alone, in a batch and in any place of it (up to the rounding of the device's matrix products). A
picture is exactly height x width codes. Text runs until a stop id, or a limit, which is then told.
Ids in, ids and codes out: words and pixels are `liquid`'s business. Nothing here is clamped; a
request that doesn't fit the context is an error before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError, DataError
from liquidmm.generate.decode import decode, head_rows
from liquidmm.generate.sampling import SamplingConfig, draw, forbid, guide
from liquidmm.runtime import generator
from liquidmm.vocabulary import Vocabulary

Finish = Literal["stop", "length"]
"""Why text ended: the model ended it, or the token limit or the context did."""

Progress = Callable[[int, int], None]
"""Called with (codes drawn so far, codes to draw in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureRequest:
    """One picture to draw."""

    prompt: tuple[int, ...]
    """Ids up to and including boi."""
    grid: tuple[int, int]
    """Rows and columns of codes."""
    sampling: SamplingConfig
    """How codes are drawn."""
    seed: int = 0
    """Seed of this picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """One text to write, which may hold pictures."""

    prompt: tuple[int, ...]
    """Ids the text follows."""
    max_tokens: int
    """Text ids to write at most, at least 1; the context may end the text earlier."""
    sampling: SamplingConfig
    """How text is drawn."""
    picture_sampling: SamplingConfig
    """How the codes of a picture inside it are drawn."""
    seed: int = 0
    """Seed of this text and of its pictures."""
    grid: tuple[int, int] | None = None
    """Rows and columns of a picture that the model may open; None forbids pictures."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: must be at least 1 ({self.max_tokens}). Ask for more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextStep:
    """The model wrote one text id."""

    id: int
    """The id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureStep:
    """The model drew a whole picture."""

    codes: Tensor
    """Codes, (h, w), int64, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Nothing follows."""

    finish: Finish
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A finished text."""

    ids: tuple[int, ...]
    """Its ids, without the stop id."""
    finish: Finish
    """Why it ended."""


R = TypeVar("R", PictureRequest, TextRequest)


class Engine:
    """Answers requests with one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        unconditional: Sequence[int],
        stop: Collection[int],
    ) -> None:
        """Prepare the two heads; the weights stay shared with ``model``.

        Args:
            model: Causal language model in eval mode.
            vocabulary: Where its text and image ids lie.
            unconditional: Prompt of guidance, up to and including boi.
            stop: Ids that end a text.
        """
        self.vocabulary = vocabulary
        self.stop = frozenset(stop)
        self.context: int = model.config.get_text_config(decoder=True).max_position_embeddings
        """Ids the model can take in, prompt and result together."""
        self._unconditional = tuple(unconditional)
        self._image_head = head_rows(model, vocabulary.image_slice)
        self._text_head = head_rows(model, slice(0, vocabulary.text_size))

    def pictures(
        self,
        requests: Sequence[PictureRequest],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Draw pictures.

        Args:
            requests: Any mix; those of equal grid and sampling share a batch.
            batch_size: Pictures drawn at once, at most.
            progress: Told after every step.

        Returns:
            Codes of each request, (h, w), int64, on the CPU, in order.

        Raises:
            DataError: A prompt leaves no room for its codes.
        """
        for request in requests:
            self._check_room(len(request.prompt), request.grid[0] * request.grid[1], "codes")
        total = sum(request.grid[0] * request.grid[1] for request in requests)
        done = 0
        results: dict[int, Tensor] = {}
        for places in _batches(requests, lambda r: (r.grid, r.sampling), batch_size):
            steps = []
            batch = [requests[place] for place in places]
            randoms = [generator(request.seed) for request in batch]
            for columns in self._draw_codes(batch, randoms):
                steps.append(columns)
                done += len(places)
                if progress is not None:
                    progress(done, total)
            codes = torch.stack(steps, dim=1).cpu()
            for place, row in zip(places, codes, strict=True):
                results[place] = row.view(requests[place].grid)
        return [results[place] for place in range(len(requests))]

    def texts(self, requests: Sequence[TextRequest], *, batch_size: int = 16) -> list[Text]:
        """Write texts without pictures.

        Args:
            requests: Any mix with ``grid=None``; those of equal sampling share a batch.
            batch_size: Texts written at once, at most.

        Returns:
            The texts, in order.

        Raises:
            DataError: A prompt fills the context.
        """
        for request in requests:
            self._check_room(len(request.prompt), 1, "token of text")
        results: dict[int, Text] = {}
        for places in _batches(requests, lambda r: r.sampling, batch_size):
            batch = [requests[place] for place in places]
            results.update(zip(places, self._write(batch), strict=True))
        return [results[place] for place in range(len(requests))]

    def stream(self, request: TextRequest) -> Iterator[TextStep | PictureStep | End]:
        """Write one text, with the pictures the model opens, as it comes.

        Args:
            request: The request; the model may open a picture only while all of it fits the
                context.

        Yields:
            Steps, the last of which is the only `End`.

        Raises:
            DataError: The prompt fills the context.
        """
        self._check_room(len(request.prompt), 1, "token of text")
        random = generator(request.seed)
        ids = list(request.prompt)
        left = request.max_tokens
        while True:
            start = len(ids)
            finish = yield from self._write_on(ids, left, request, random)
            if finish is not None:
                yield End(finish=finish)
                return
            left -= len(ids) - start
            picture = PictureRequest(
                prompt=tuple(ids), grid=request.grid or (0, 0), sampling=request.picture_sampling
            )
            codes = torch.stack(list(self._draw_codes([picture], [random])), dim=1).cpu()
            ids += [*self.vocabulary.to_ids(codes[0]).tolist(), self.vocabulary.eoi]
            yield PictureStep(codes=codes.view(picture.grid))

    def _write_on(
        self, ids: list[int], left: int, request: TextRequest, random: torch.Generator
    ) -> Generator[TextStep, None, Finish | None]:
        """Append text to ``ids`` until it ends (returns why) or a picture begins (returns None)."""

        def pick(logits: Tensor, _: Tensor | None) -> Tensor:
            blocked = self._blocked(may_open=self._picture_fits(len(ids), request.grid))
            return draw(forbid(logits, blocked), request.sampling, [random])

        limit = min(left, self.context - len(ids))
        for columns in decode(self._text_head, [tuple(ids)], pick, steps=limit):
            token = int(columns[0])
            if token in self.stop:
                return "stop"
            ids.append(token)
            if token == self.vocabulary.boi:
                return None
            yield TextStep(id=token)
        return "length"

    def _write(self, requests: Sequence[TextRequest]) -> list[Text]:
        """Write a batch of texts of equal sampling; finished rows idle until the last one ends."""
        randoms = [generator(request.seed) for request in requests]
        limits = [min(r.max_tokens, self.context - len(r.prompt)) for r in requests]
        written: list[list[int]] = [[] for _ in requests]
        finish: list[Finish | None] = [None] * len(requests)
        blocked = self._blocked(may_open=False)

        def pick(logits: Tensor, _: Tensor | None) -> Tensor:
            return draw(forbid(logits, blocked), requests[0].sampling, randoms)

        prompts = [request.prompt for request in requests]
        for columns in decode(self._text_head, prompts, pick, steps=max(limits)):
            for row, token in enumerate(columns.tolist()):
                if finish[row] is None and token in self.stop:
                    finish[row] = "stop"
                elif finish[row] is None:
                    written[row].append(token)
                    finish[row] = "length" if len(written[row]) == limits[row] else None
            if all(finish):
                break
        return [
            Text(ids=tuple(ids), finish=end or "length")
            for ids, end in zip(written, finish, strict=True)
        ]

    def _draw_codes(
        self, requests: Sequence[PictureRequest], randoms: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """Draw a batch of pictures of equal grid and sampling, one code of each per step."""
        sampling = requests[0].sampling

        def pick(conditional: Tensor, unconditional: Tensor | None) -> Tensor:
            if unconditional is not None:
                conditional = guide(conditional, unconditional, sampling.guidance)
            return draw(conditional, sampling, randoms)

        return decode(
            self._image_head,
            [request.prompt for request in requests],
            pick,
            steps=requests[0].grid[0] * requests[0].grid[1],
            first_id=self.vocabulary.image_offset,
            unconditional=None if sampling.guidance == 1 else self._unconditional,
        )

    def _blocked(self, *, may_open: bool) -> list[int]:
        """Return the ids that text may not hold now."""
        markers = self.vocabulary
        return [markers.eoi, markers.unconditional, *([] if may_open else [markers.boi])]

    def _picture_fits(self, length: int, grid: tuple[int, int] | None) -> bool:
        # One id each for boi, eoi and the text that must be able to follow.
        return grid is not None and length + grid[0] * grid[1] + 3 <= self.context

    def _check_room(self, prompt: int, needed: int, what: str) -> None:
        if prompt + needed > self.context:
            raise DataError(
                f"prompt: {prompt} ids and {needed} {what} don't fit the model's context of "
                f"{self.context} ids. Shorten the prompt."
            )


def _batches(
    requests: Sequence[R], same: Callable[[R], Hashable], size: int
) -> Iterator[list[int]]:
    """Yield the places of requests that may run together, at most ``size`` at once."""
    if size < 1:
        raise ConfigError(f"batch_size: must be at least 1 ({size}). Ask for more.")
    groups: dict[Hashable, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(same(request), []).append(place)
    for places in groups.values():
        # Near lengths together: less padding.
        places.sort(key=lambda place: len(requests[place].prompt))
        for start in range(0, len(places), size):
            yield places[start : start + size]
