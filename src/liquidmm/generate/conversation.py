"""A conversation that remembers its turns, pictures included.

Contract: a turn is remembered when its answer is complete; one that fails or is broken off leaves
no trace, and a picture attached to it stays attached. When the context is full the oldest turns are
forgotten, and `forgotten` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from liquidmm.errors import DataError
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
            DataError: This turn alone is too long for the context, or spells out `<image>`.
        """
        _check(text)
        question = _user(IMAGE_PLACEHOLDER * len(self._attached) + text)
        forgotten = self._forget(question)
        messages = self._messages[forgotten:]
        pictures = [*self._pictures_from(forgotten), *self._attached]
        drawn: list[Tensor] = []
        runs = [""]  # the text between the pictures of the answer
        for piece in self._liquid.stream(
            [*messages, question], pictures, seed=self._seed, sampling=self._sampling
        ):
            if isinstance(piece, Picture):
                drawn.append(piece.codes)
                runs.append("")
            else:
                runs[-1] += piece.text
            yield piece
        self._messages, self._pictures, self._attached = messages, pictures, []
        self.forgotten += forgotten
        # Placeholders that the model spelled out are words, not pictures.
        words = (run.replace(IMAGE_PLACEHOLDER, "image") for run in runs)
        self._remember(question, IMAGE_PLACEHOLDER.join(words), drawn)

    def draw(self, prompt: str) -> Picture:
        """Draw a picture on request; request and picture are remembered.

        A picture that is attached stays so for what is said next.

        Args:
            prompt: What it shall show.

        Returns:
            The picture.

        Raises:
            DataError: The prompt is empty or too long, or spells out `<image>`.
        """
        _check(prompt)
        codes = self._liquid.generate_codes([prompt], seeds=[self._seed])[0]
        self._remember(_user(prompt), IMAGE_PLACEHOLDER, [codes])
        return Picture(image=self._liquid.decode(codes), codes=codes)

    def _remember(self, question: dict[str, str], answer: str, drawn: list[Tensor]) -> None:
        self._messages += [question, {"role": "assistant", "content": answer}]
        self._pictures += drawn
        self._seed += 1

    def _forget(self, question: dict[str, str]) -> int:
        """Return how many of the oldest messages leave no room for the question's answer."""
        context = self._liquid.engine.context
        room = min(ROOM, context // 4)
        for count in range(0, len(self._messages), 2):
            messages = [*self._messages[count:], question]
            pictures = [*self._pictures_from(count), *self._attached]
            if len(self._liquid.chat_prompt(messages, pictures)) + room <= context:
                return count
        return len(self._messages)

    def _pictures_from(self, count: int) -> list[Tensor]:
        """Return the pictures of all but the ``count`` oldest messages."""
        older = "".join(message["content"] for message in self._messages[:count])
        return self._pictures[older.count(IMAGE_PLACEHOLDER) :]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _check(text: str) -> None:
    if IMAGE_PLACEHOLDER in text:
        raise DataError(
            f"chat: '{IMAGE_PLACEHOLDER}' stands for a picture and can't be said. "
            "Attach a picture, or write the word without brackets."
        )
