r"""The one place that lays ids out: which ids, in which order, for every task.

==============  =====================================================================
text            ``[bos] text [eos]``
text to image   ``[bos] caption + hint + request [boi]`` then ``codes [eoi] [eos]``
unconditional   ``[bos] [unconditional] [boi]``
image to text   ``[bos] [boi] codes [eoi] caption prompt`` then ``caption [eos]``
chat            the tokenizer's chat template; ``<image>`` is a picture and a newline
==============  =====================================================================

``bos`` and ``eos`` are left out where the tokenizer has none. A picture is ``[boi]``, the codes row
by row, ``[eoi]``. Data and model code both use this module, so training and inference can't drift
apart: the ids of a chat with ``add_generation_prompt`` are a prefix of the ids of the same chat
with the answer.

Text that comes from outside is tokenized without looking for special tokens: a caption that
contains ``<eoi>`` or ``<|im_end|>`` becomes the letters of that word, never the marker. Only the
chat template itself may write special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import jinja2
import numpy as np

from liquidmm import prompts
from liquidmm.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import AddedToken
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from liquidmm.vocabulary import Vocabulary

    Codes = Tensor | np.ndarray[Any, Any]
    Piece = tuple[str | list[int], bool]

_SENTINEL = "\ue000{}\ue001"
_SENTINEL_PATTERN = re.compile("\ue000(\\d+)\ue001")


class Turn(Protocol):
    """One chat message; a mapping with the same two keys is as good."""

    @property
    def role(self) -> str:
        """Who speaks: `user`, `assistant` or `system`."""

    @property
    def content(self) -> str:
        """What is said, with `<image>` where a picture stands."""


class Sequences:
    """Lays ids out for one tokenizer and one vocabulary. Every method returns plain lists."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        """Keep both; nothing is computed yet."""
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._special: dict[str, tuple[int, AddedToken]] | None = None

    @property
    def bos(self) -> int | None:
        """Id that starts every sequence, or None."""
        return cast("int | None", self.tokenizer.bos_token_id)

    @property
    def eos(self) -> int | None:
        """Id that ends every sequence, or None."""
        return cast("int | None", self.tokenizer.eos_token_id)

    @property
    def end_of_turn(self) -> int | None:
        """Id that ends an answer in a chat, or None where the template writes none."""
        ids, mask = self.chat(
            [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}], []
        )
        last = max(index for index, trained in enumerate(mask) if trained)
        special = {index for index, _ in self._special_tokens().values()}
        return ids[last] if ids[last] in special else None

    @property
    def chat_template(self) -> str:
        """The tokenizer's chat template, or the one that belongs to its turn markers.

        Raises:
            CheckpointError: The tokenizer has no chat template and knows no turn markers.
        """
        own = self.tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if own:
            return cast("str", own)
        for markers, template in prompts.FALLBACK_TEMPLATES.items():
            if all(marker in self._special_tokens() for marker in markers):
                return template
        raise CheckpointError(
            "chat: the tokenizer has no chat template. "
            "Put a chat_template.jinja into the checkpoint folder."
        )

    def encode(self, text: str) -> list[int]:
        """Tokenize text from outside: no special token is added and none is recognised."""
        if not text:
            return []
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return cast("list[int]", ids)

    def text(self, text: str) -> list[int]:
        """Return ``[bos] text [eos]``."""
        return [*self._bos(), *self.encode(text), *self._eos()]

    def text_prompt(self, text: str) -> list[int]:
        """Return ``[bos] text``; more text comes next.

        Raises:
            DataError: There is no id in it.
        """
        ids = [*self._bos(), *self.encode(text)]
        if not ids:
            raise DataError("prompt: the text is empty, and the tokenizer has no bos. Write some.")
        return ids

    def picture(self, codes: Codes) -> list[int]:
        """Return ``[boi] codes [eoi]``.

        Args:
            codes: Grid of codes, (h, w), any integer type; read row by row.

        Raises:
            DataError: A code is outside the codebook.
        """
        grid = np.asarray(codes.cpu() if hasattr(codes, "cpu") else codes).astype(np.int64)
        ids = self.vocabulary.to_ids(grid.reshape(-1)).tolist()
        return [self.vocabulary.boi, *ids, self.vocabulary.eoi]

    def text_to_image_prompt(
        self,
        caption: str,
        request: str = prompts.REQUEST,
        size: tuple[int, int] | None = None,
    ) -> list[int]:
        """Return ``[bos] caption + hint + request [boi]``; the codes come next.

        Args:
            caption: What the picture shows.
            request: One of `prompts.REQUESTS`.
            size: Width and height in pixels to ask for; None leaves the hint out.

        Raises:
            DataError: The caption is empty.
        """
        if not caption.strip():
            raise DataError("prompt: the text is empty. Describe the picture in a few words.")
        text = prompts.text_to_image_prompt(caption, request, size)
        return [*self._bos(), *self.encode(text), self.vocabulary.boi]

    def unconditional_prompt(self) -> list[int]:
        """Return ``[bos] [unconditional] [boi]``: the prompt of the unguided half."""
        return [*self._bos(), self.vocabulary.unconditional, self.vocabulary.boi]

    def image_to_text_prompt(self, codes: Codes) -> list[int]:
        """Return ``[bos] [boi] codes [eoi] caption prompt``; `caption` comes next."""
        return [*self._bos(), *self.picture(codes), *self.encode(prompts.CAPTION_PROMPT)]

    def caption(self, caption: str) -> list[int]:
        """Return the ids of a caption as they follow the caption prompt, without ``[eos]``."""
        return self.encode(" " + caption.strip())

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        pictures: Sequence[Codes],
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """Lay out a conversation by the tokenizer's chat template.

        White space around a content is dropped. A picture may stand in any turn.

        Args:
            messages: The turns; each `<image>` in a content takes the next picture.
            pictures: Code grids, (h, w) each, in the order of the placeholders.
            add_generation_prompt: End with the start of an assistant turn.

        Returns:
            The ids, and for each id whether an assistant wrote it: the text, the pictures and the
            end-of-turn marker of assistant turns (the white space that follows, where a template
            has no marker).

        Raises:
            DataError: Placeholders and pictures differ in number, or the template refuses the
                messages or leaves one out.
            CheckpointError: The tokenizer has no chat template and knows no turn markers.
        """
        turns = [_role_and_content(message) for message in messages]
        grids = self._pictures_of(turns, pictures)
        parts = _SENTINEL_PATTERN.split(self._render(turns, add_generation_prompt))
        shown = [int(index) for index in parts[1::2]]
        for index, (role, _) in enumerate(turns):
            if shown.count(index) != 1:
                raise DataError(
                    f"chat: the model's chat template writes turn {index + 1} ({role}) "
                    f"{shown.count(index)} times. Leave that turn out."
                )
        pieces: list[Piece] = self._template_pieces(parts[0], ends_turn=False)
        for index, template in zip(shown, parts[2::2], strict=True):
            role, content = turns[index]
            trained = role == "assistant"
            pieces += self._content_pieces(content, grids[index], trained)
            pieces += self._template_pieces(template, ends_turn=trained)
        return self._encode_pieces(pieces)

    def _bos(self) -> list[int]:
        return [] if self.bos is None else [self.bos]

    def _eos(self) -> list[int]:
        return [] if self.eos is None else [self.eos]

    def _pictures_of(
        self, turns: list[tuple[str, str]], pictures: Sequence[Codes]
    ) -> list[list[Codes]]:
        counts = [content.count(prompts.IMAGE_PLACEHOLDER) for _, content in turns]
        if sum(counts) != len(pictures):
            raise DataError(
                f"chat: {sum(counts)} {prompts.IMAGE_PLACEHOLDER} in the messages for "
                f"{len(pictures)} pictures. Write one placeholder for each picture."
            )
        remaining = iter(pictures)
        return [[next(remaining) for _ in range(count)] for count in counts]

    def _render(self, turns: list[tuple[str, str]], add_generation_prompt: bool) -> str:
        conversation = [
            {"role": role, "content": _SENTINEL.format(index)}
            for index, (role, _) in enumerate(turns)
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise DataError(
                f"chat: the model's chat template refused the messages ({error}). "
                "Alternate user and assistant turns, at most one system turn first."
            ) from error
        return cast("str", rendered)

    def _special_tokens(self) -> dict[str, tuple[int, AddedToken]]:
        if self._special is None:
            self._special = {
                token.content: (index, token)
                for index, token in self.tokenizer.added_tokens_decoder.items()
                if token.special
            }
        return self._special

    def _template_pieces(self, text: str, *, ends_turn: bool) -> list[Piece]:
        """Cut template text at its special tokens; the end marker of an answer is trained."""
        tokens = self._special_tokens()
        if not tokens:
            return self._plain_pieces(text, ends_turn)
        longest_first = sorted(tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        if len(parts) == 1:
            return self._plain_pieces(text, ends_turn)
        pieces: list[Piece] = []
        strip_next = False
        for position, part in enumerate(parts):
            trained = ends_turn and position < 2
            if position % 2 == 0:
                pieces.append((part.lstrip() if strip_next else part, trained))
                continue
            index, token = tokens[part]
            if token.lstrip:
                pieces[-1] = (cast("str", pieces[-1][0]).rstrip(), pieces[-1][1])
            pieces.append(([index], trained))
            strip_next = token.rstrip
        return pieces

    def _plain_pieces(self, text: str, ends_turn: bool) -> list[Piece]:
        if not ends_turn:
            return [(text, False)]
        rest = text.lstrip()
        return [(text[: len(text) - len(rest)], True), (rest, False)]

    def _content_pieces(self, content: str, grids: list[Codes], trained: bool) -> list[Piece]:
        first, *others = content.split(prompts.IMAGE_PLACEHOLDER)
        pieces: list[Piece] = [(first, trained)]
        for grid, text in zip(grids, others, strict=True):
            pieces.append((self.picture(grid), trained))
            pieces.append(("\n" + text.removeprefix("\n"), trained))
        return pieces

    def _encode_pieces(self, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
        """Tokenize runs of text as one, so that the ids equal those of the whole text.

        Runs end where an answer starts or ends: there, inference tokenizes separately too.
        """
        ids: list[int] = []
        mask: list[bool] = []
        run = ""

        def flush(trained: bool) -> None:
            nonlocal run
            new = self.encode(run)
            ids.extend(new)
            mask.extend([trained] * len(new))
            run = ""

        before = False
        for payload, trained in pieces:
            if trained != before or not isinstance(payload, str):
                flush(before)
            if isinstance(payload, str):
                run += payload
            else:
                ids.extend(payload)
                mask.extend([trained] * len(payload))
            before = trained
        flush(before)
        return ids, mask


def _role_and_content(message: Turn | Mapping[str, str]) -> tuple[str, str]:
    """Read a mapping or an object; the content is stripped."""
    if isinstance(message, Mapping):
        return message["role"], message["content"].strip()
    return message.role, message.content.strip()
