"""Ids to words: all at once or as they come, and the ids that end a text.

Contract: special tokens never show up in words. What is streamed, put together, equals what is
decoded at once.
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


def stop_ids(model: PreTrainedModel, sequences: Sequences) -> set[int]:
    """Collect the ids that end a text: those of the tokenizer, the chat template and the model."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    known = [sequences.eos, *(named if isinstance(named, list) else [named])]
    # A tokenizer without a chat template can't chat, but its model still draws and describes.
    with contextlib.suppress(CheckpointError):
        known.append(sequences.end_of_turn)
    return {token for token in known if token is not None}
