"""A conversation that remembers its turns, pictures included.

Contract: a turn is remembered when its answer is complete; one that fails or is broken off leaves
no trace, and a picture attached to it stays attached. When the context is full the oldest turns are
forgotten, and `forgotten` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from liquidmm.generate.liquid import Liquid
from liquidmm.generate.pictures import ImageLike
from liquidmm.generate.reply import Picture, TextPiece
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.prompts import IMAGE_PLACEHOLDER

ROOM = 128
"""Ids kept free for an answer; less where the context is short."""


class Conversation:
    """Turns between a user and a model."""

    def __init__(
        self, liquid: Liquid, *, seed: int = 0, sampling: SamplingConfig | None = None
    ) -> None:
        """Begin an empty conversation.

        Args:
            liquid: Who answers.
            seed: Seed of the first answer; each turn adds one.
            sampling: How text is drawn; None takes the default of `Liquid.stream`.
        """
        self.forgotten = 0
        """Messages dropped so far because the context was full."""
        self._liquid = liquid
        self._sampling = sampling
        self._first_seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all turns and attached pictures."""
        self._seed = self._first_seed
        self._messages: list[dict[str, str]] = []
        self._pictures: list[Tensor] = []
        self._attached: list[Tensor] = []

    def attach(self, image: ImageLike) -> None:
        """Put a picture in front of what is said next.

        Raises:
            DataError: The picture can't be read.
        """
        self._attached.append(self._liquid.encode(image))

    def say(self, text: str) -> Iterator[TextPiece | Picture]:
        """Say something and stream the answer; both are remembered at its end.

        Args:
            text: What the user says.

        Yields:
            The answer, piece by piece.

        Raises:
            DataError: This turn alone is too long for the context.
        """
        question = {"role": "user", "content": IMAGE_PLACEHOLDER * len(self._attached) + text}
        self._make_room(question)
        answer, drawn = "", []
        for piece in self._liquid.stream(
            [*self._messages, question],
            [*self._pictures, *self._attached],
            seed=self._seed,
            sampling=self._sampling,
        ):
            if isinstance(piece, Picture):
                answer += IMAGE_PLACEHOLDER
                drawn.append(piece.codes)
            else:
                # Spelled-out placeholders are words here, not pictures.
                answer += piece.text.replace(IMAGE_PLACEHOLDER, "image")
            yield piece
        self._remember(question, answer, drawn)

    def draw(self, prompt: str) -> Picture:
        """Draw a picture on request; request and picture are remembered.

        Args:
            prompt: What it shall show.

        Returns:
            The picture.

        Raises:
            DataError: The prompt is empty or too long.
        """
        codes = self._liquid.draw_codes([prompt], seeds=[self._seed])[0]
        question = {"role": "user", "content": prompt}
        self._remember(question, IMAGE_PLACEHOLDER, [codes])
        return Picture(image=self._liquid.decode(codes), codes=codes)

    def _remember(self, question: dict[str, str], answer: str, drawn: list[Tensor]) -> None:
        self._messages += [question, {"role": "assistant", "content": answer}]
        self._pictures += [*self._attached, *drawn]
        self._attached = []
        self._seed += 1

    def _make_room(self, question: dict[str, str]) -> None:
        context = self._liquid.engine.context
        room = min(ROOM, context // 4)
        while self._messages:
            pictures = [*self._pictures, *self._attached]
            prompt = self._liquid.chat_prompt([*self._messages, question], pictures)
            if len(prompt) + room <= context:
                return
            dropped = "".join(message["content"] for message in self._messages[:2])
            del self._pictures[: dropped.count(IMAGE_PLACEHOLDER)]
            del self._messages[:2]
            self.forgotten += 2
