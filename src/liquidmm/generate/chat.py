"""A conversation that keeps its turns and images.

A turn is kept once its answer is complete; a turn that fails or is interrupted is discarded, and
its attached image stays attached. When the context is full, the oldest turns are dropped, and
`dropped` counts their messages.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from liquidmm.errors import DataError
from liquidmm.generate.images import ImageLike
from liquidmm.generate.liquid import Liquid
from liquidmm.generate.outputs import ImagePiece, Piece, TextPiece
from liquidmm.generate.requests import chat_request
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.prompts import IMAGE_PLACEHOLDER

ANSWER_ROOM = 128
"""Tokens kept free for an answer; a quarter of the context if that is less."""


class Conversation:
    """A conversation between a user and a model."""

    def __init__(
        self,
        liquid: Liquid,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        max_tokens: int = 512,
    ) -> None:
        """Start an empty conversation.

        Args:
            liquid: The model.
            seed: Seed of the first answer; each turn adds one.
            sampling: How text is sampled; None is the default of `Liquid.chat`.
            max_tokens: Maximum number of text tokens in an answer.
        """
        self.dropped = 0
        """Messages dropped so far because the context was full."""
        self._liquid = liquid
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._first_seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all turns and attached images."""
        self._seed = self._first_seed
        self._messages: list[dict[str, str]] = []
        self._images: list[Tensor] = []
        self._attached: list[Tensor] = []

    def attach(self, image: ImageLike) -> None:
        """Attach an image to the next message.

        Raises:
            DataError: The image cannot be read.
        """
        self._attached.append(self._liquid.encode(image))

    def say(self, text: str) -> Iterator[Piece]:
        """Send a message and stream the answer; both are kept once the answer is complete.

        Raises:
            DataError: This turn alone is too long, or the text contains `<image>`.
        """
        _check(text)
        question = _user(IMAGE_PLACEHOLDER * len(self._attached) + text)
        dropped = self._count_dropped(question)
        messages = self._messages[dropped:]
        images = [*self._images_after(dropped), *self._attached]
        request = chat_request(
            [*messages, question],
            images,
            seed=self._seed,
            sampling=self._sampling,
            max_tokens=self._max_tokens,
        )
        generated: list[Tensor] = []
        parts = [""]  # the text between the images of the answer
        for piece in self._liquid.stream(request):
            if isinstance(piece, ImagePiece):
                generated.append(piece.codes)
                parts.append("")
            elif isinstance(piece, TextPiece):
                parts[-1] += piece.text
            yield piece
        self._messages, self._images, self._attached = messages, images, []
        self.dropped += dropped
        # A placeholder that the model wrote as text is not an image.
        texts = (part.replace(IMAGE_PLACEHOLDER, "image") for part in parts)
        self._keep(question, IMAGE_PLACEHOLDER.join(texts), generated)

    def generate_image(self, prompt: str) -> ImagePiece:
        """Generate an image; the prompt and the image are kept as a turn.

        An attached image stays attached to the next message.

        Raises:
            DataError: The prompt is empty or too long, or contains `<image>`.
        """
        _check(prompt)
        codes = self._liquid.generate_codes([prompt], seeds=[self._seed])[0]
        self._keep(_user(prompt), IMAGE_PLACEHOLDER, [codes])
        return ImagePiece(image=self._liquid.decode(codes), codes=codes)

    def _keep(self, question: dict[str, str], answer: str, generated: list[Tensor]) -> None:
        self._messages += [question, {"role": "assistant", "content": answer}]
        self._images += generated
        self._seed += 1

    def _count_dropped(self, question: dict[str, str]) -> int:
        """Return how many of the oldest messages to drop to leave room for the answer."""
        context = self._liquid.engine.context
        room = min(ANSWER_ROOM, context // 4)
        for count in range(0, len(self._messages), 2):
            messages = [*self._messages[count:], question]
            images = [*self._images_after(count), *self._attached]
            if len(self._liquid.chat_prompt(messages, images)) + room <= context:
                return count
        return len(self._messages)

    def _images_after(self, count: int) -> list[Tensor]:
        """Return the images of all but the ``count`` oldest messages."""
        older = "".join(message["content"] for message in self._messages[:count])
        return self._images[older.count(IMAGE_PLACEHOLDER) :]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _check(text: str) -> None:
    if IMAGE_PLACEHOLDER in text:
        raise DataError(
            f"chat: '{IMAGE_PLACEHOLDER}' is reserved for images. "
            "Attach an image, or write the word without brackets."
        )
