"""Ids to words: all at once or as they come, and what ends a text.

Contract: special tokens never show up in words. What is streamed, put together, equals what is
decoded at once, up to the first stop string, which is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from liquidmm.errors import CheckpointError
from liquidmm.sequences import Sequences

_INCOMPLETE = "\ufffd"


def words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of ``ids`` without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


class Characters:
    """Ids to text as they come; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start without ids."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """Take one more id and return the new text, maybe none."""
        self._ids.append(token)
        text = words(self._tokenizer, self._ids)
        return "" if text.endswith(_INCOMPLETE) else self._new(text)

    def rest(self) -> str:
        """Return what was held back and start anew."""
        piece = self._new(words(self._tokenizer, self._ids))
        self._ids, self._shown = [], ""
        return piece

    def _new(self, text: str) -> str:
        piece, self._shown = text[len(self._shown) :], text
        return piece


class StopStrings:
    """Text as it comes, up to the first of some strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Start without text.

        Args:
            strings: Any of them ends the text; none is empty.
        """
        self._strings = tuple(strings)
        self._held = ""
        self.hit = False
        """Whether one of them has come; nothing is let through any more."""

    def add(self, text: str) -> str:
        """Take more text; return what is sure not to belong to a stop string."""
        if self.hit:
            return ""
        self._held += text
        # The one that is complete first counts, however the text was cut into pieces.
        ends = [(self._held.find(string), len(string)) for string in self._strings]
        if found := [(place + size, place) for place, size in ends if place >= 0]:
            self.hit = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        kept = max((self._overlap(string) for string in self._strings), default=0)
        shown = self._held[: len(self._held) - kept]
        self._held = self._held[len(shown) :]
        return shown

    def rest(self) -> str:
        """Return what was held back and start anew."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, string: str) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), len(string) - 1)
        sizes = range(longest, 0, -1)
        return next((size for size in sizes if self._held.endswith(string[:size])), 0)


def stop_ids(model: PreTrainedModel, sequences: Sequences) -> set[int]:
    """Collect the ids that end a text: those of the tokenizer, the chat template and the model."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    known = [sequences.eos, *(named if isinstance(named, list) else [named])]
    # A tokenizer without a chat template can't chat, but its model still draws and describes.
    with contextlib.suppress(CheckpointError):
        known.append(sequences.end_of_turn)
    return {token for token in known if token is not None}
