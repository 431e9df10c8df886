"""Detokenization: events to text and images, whole or streamed, and stop strings.

Special tokens never appear in text. The streamed text equals the text decoded at once, up to the
first stop string, which is removed. Incomplete characters, and text that may be the start of a stop
string, are held back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liquidmm.errors import CheckpointError
from liquidmm.generate.images import ImageCodec
from liquidmm.generate.outputs import (
    Event,
    Finish,
    ImagePiece,
    ImagePreview,
    ImageRows,
    ImageStep,
    Piece,
    Reply,
    TextPiece,
    TextStep,
)
from liquidmm.generate.requests import TokenRequest
from liquidmm.prompts import IMAGE_PLACEHOLDER
from liquidmm.sequences import Sequences

_INCOMPLETE = "\ufffd"


def detokenize(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens without special tokens."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def stop_tokens(model: PreTrainedModel, sequences: Sequences) -> set[int]:
    """Return the tokens that end a text, for the tokenizer, the chat template and the model."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    known = [sequences.eos, *(named if isinstance(named, list) else [named])]
    # Without a chat template the model cannot chat, but it still generates and describes images.
    with contextlib.suppress(CheckpointError):
        known.append(sequences.end_of_turn)
    return {token for token in known if token is not None}


class TextStream:
    """Text from tokens as they arrive; characters with missing bytes are held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """Take a token and return the new text, possibly empty."""
        self._tokens.append(token)
        text = detokenize(self._tokenizer, self._tokens)
        return "" if text.endswith(_INCOMPLETE) else self._new(text)

    def flush(self) -> str:
        """Return the text that was held back and reset."""
        piece = self._new(detokenize(self._tokenizer, self._tokens))
        self._tokens, self._shown = [], ""
        return piece

    def _new(self, text: str) -> str:
        piece, self._shown = text[len(self._shown) :], text
        return piece


class StopStrings:
    """Cuts streamed text before the first of some strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.hit = False
        """Whether one of them has appeared; all further text is dropped."""

    def add(self, text: str) -> str:
        """Take more text and return what cannot be part of a stop string."""
        if self.hit:
            return ""
        self._held += text
        # The string that is completed first wins, no matter how the text is split.
        ends = [(self._held.find(string), len(string)) for string in self._strings]
        if found := [(start + size, start) for start, size in ends if start >= 0]:
            self.hit = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        kept = max((self._overlap(string) for string in self._strings), default=0)
        shown = self._held[: len(self._held) - kept]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """Return the text that was held back and reset."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, string: str) -> int:
        """Return the length of the longest suffix of the text that starts a stop string."""
        longest = min(len(self._held), len(string) - 1)
        sizes = range(longest, 0, -1)
        return next((size for size in sizes if self._held.endswith(string[:size])), 0)


class Detokenizer:
    """Turns the events of one request into pieces and a reply."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        images: ImageCodec,
        request: TokenRequest,
        stop: Sequence[str] = (),
    ) -> None:
        """Start without pieces; each string in ``stop`` ends the text."""
        self.finish: Finish | None = None
        """Why the reply ended; None while it continues."""
        self._text_stream = TextStream(tokenizer)
        self._stop = StopStrings(stop)
        self._codec = images
        self._grid = request.grid
        self._text = ""
        self._images: list[Image.Image] = []

    @property
    def reply(self) -> Reply:
        """The reply, once it has ended."""
        assert self.finish is not None
        return Reply(text=self._text.strip(), images=tuple(self._images), finish=self.finish)

    def add(self, event: Event) -> list[Piece]:
        """Take an event and return what it adds.

        Raises:
            LiquidError: The request failed.
        """
        if isinstance(event, TextStep):
            return self._add_text(self._text_stream.add(event.token))
        pieces = self._add_text(self._text_stream.flush())
        if self.finish is not None:
            return pieces
        if rest := self._stop.flush():
            pieces.append(self._text_piece(rest))
        if isinstance(event, ImageRows):
            assert self._grid is not None
            image = self._codec.preview(event.codes, self._grid)
            pieces.append(ImagePreview(image=image, done=len(event.codes) / self._grid[0]))
        elif isinstance(event, ImageStep):
            image = self._codec.decode(event.codes)
            self._images.append(image)
            self._text += IMAGE_PLACEHOLDER
            pieces.append(ImagePiece(image=image, codes=event.codes))
        elif event.error is not None:
            raise event.error
        else:
            self.finish = event.finish
        return pieces

    def _add_text(self, text: str) -> list[Piece]:
        shown = self._stop.add(text)
        if self._stop.hit:
            self.finish = "stop"
        return [self._text_piece(shown)] if shown else []

    def _text_piece(self, text: str) -> TextPiece:
        self._text += text
        return TextPiece(text=text)
