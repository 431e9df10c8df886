r"""Token layouts: which token ids, in which order, for every task.

==============  ==============================================================================
text            ``[bos] text [eos]``
text to image   ``[bos] caption + size hint + request [boi]`` then ``image tokens [eoi] [eos]``
unconditional   ``[bos] [unconditional] [boi]``
image to text   ``[bos] [boi] image tokens [eoi] caption prompt`` then ``caption [eos]``
chat            the tokenizer's chat template; ``<image>`` is an image and a newline
==============  ==============================================================================

An image is ``[boi]``, its codes row by row as image tokens, ``[eoi]``. ``bos`` and ``eos`` are
omitted if the tokenizer has none. Training and inference both use this module, so a chat prompt
with ``add_generation_prompt`` is a prefix of the same chat with the answer.

Text from users and datasets never becomes a special token: a caption that contains ``<eoi>`` or
``<|im_end|>`` is tokenized as ordinary characters. Only the chat template writes special tokens.
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
    """Text or token ids, and whether they are trained on."""

_TURN = "\ue000{}\ue001"
"""Placeholder for the content of a turn while the chat template is rendered."""
_TURN_PATTERN = re.compile("\ue000(\\d+)\ue001")


class Turn(Protocol):
    """A chat message; a mapping with the same two keys works as well."""

    @property
    def role(self) -> str:
        """The speaker: `user`, `assistant` or `system`."""

    @property
    def content(self) -> str:
        """The text, with `<image>` for each image."""


class Sequences:
    """Token layouts for one tokenizer and one vocabulary. Every method returns plain lists."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._special: dict[str, tuple[int, AddedToken]] | None = None

    @property
    def bos(self) -> int | None:
        """Token id that begins every sequence, or None."""
        return cast("int | None", self.tokenizer.bos_token_id)

    @property
    def eos(self) -> int | None:
        """Token id that ends every sequence, or None."""
        return cast("int | None", self.tokenizer.eos_token_id)

    @property
    def end_of_turn(self) -> int | None:
        """Token id that ends an answer in a chat, or None if the template writes none."""
        token_ids, mask = self.chat(
            [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}], []
        )
        last = max(index for index, trained in enumerate(mask) if trained)
        special = {token_id for token_id, _ in self._special_tokens().values()}
        return token_ids[last] if token_ids[last] in special else None

    @property
    def chat_template(self) -> str:
        """The tokenizer's chat template, or the one for its turn tokens.

        Raises:
            CheckpointError: The tokenizer has neither a chat template nor known turn tokens.
        """
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return cast("str", template)
        for turn_tokens, fallback in prompts.FALLBACK_TEMPLATES.items():
            if all(token in self._special_tokens() for token in turn_tokens):
                return fallback
        raise CheckpointError(
            "chat: the tokenizer has no chat template. "
            "Add a chat_template.jinja to the checkpoint folder."
        )

    def encode(self, text: str) -> list[int]:
        """Tokenize untrusted text without adding or recognizing special tokens."""
        if not text:
            return []
        token_ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return cast("list[int]", token_ids)

    def text(self, text: str) -> list[int]:
        """Return ``[bos] text [eos]``."""
        return [*self._bos(), *self.encode(text), *([] if self.eos is None else [self.eos])]

    def text_prompt(self, text: str) -> list[int]:
        """Return ``[bos] text``; more text comes next.

        Raises:
            DataError: The result has no tokens.
        """
        token_ids = [*self._bos(), *self.encode(text)]
        if not token_ids:
            raise DataError("prompt: is empty, and the tokenizer has no bos. Add some text.")
        return token_ids

    def image(self, codes: Codes) -> list[int]:
        """Return ``[boi] image tokens [eoi]``.

        Args:
            codes: Code grid, (h, w), any integer type; read row by row.

        Raises:
            DataError: A code is outside the codebook.
        """
        grid = np.asarray(codes.cpu() if hasattr(codes, "cpu") else codes).astype(np.int64)
        tokens = self.vocabulary.to_token_ids(grid.reshape(-1)).tolist()
        return [self.vocabulary.boi, *tokens, self.vocabulary.eoi]

    def text_to_image_prompt(
        self,
        caption: str,
        request: str = prompts.REQUEST,
        size: tuple[int, int] | None = None,
    ) -> list[int]:
        """Return ``[bos] caption + size hint + request [boi]``; the image tokens come next.

        Args:
            caption: Description of the image.
            request: One of `prompts.REQUESTS`.
            size: Requested width and height in pixels; None omits the size hint.

        Raises:
            DataError: The caption is empty.
        """
        if not caption.strip():
            raise DataError("prompt: is empty. Describe the image in a few words.")
        text = prompts.text_to_image_prompt(caption, request, size)
        return [*self._bos(), *self.encode(text), self.vocabulary.boi]

    def unconditional_prompt(self) -> list[int]:
        """Return ``[bos] [unconditional] [boi]``, the second prompt of guided generation."""
        return [*self._bos(), self.vocabulary.unconditional, self.vocabulary.boi]

    def image_to_text_prompt(self, codes: Codes) -> list[int]:
        """Return ``[bos] [boi] image tokens [eoi] caption prompt``; `caption` comes next."""
        return [*self._bos(), *self.image(codes), *self.encode(prompts.CAPTION_PROMPT)]

    def caption(self, caption: str) -> list[int]:
        """Return the tokens of a caption as they follow the caption prompt, without ``[eos]``."""
        return self.encode(" " + caption.strip())

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[Codes],
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """Lay out a conversation with the tokenizer's chat template.

        Whitespace around the content of a turn is dropped. Any turn can contain images.

        Args:
            messages: The turns; each `<image>` in the content consumes the next image.
            images: Code grids, (h, w) each, in the order of the placeholders.
            add_generation_prompt: End with the start of an assistant turn.

        Returns:
            The token ids, and for each one whether it belongs to an assistant turn: its text, its
            images and its end-of-turn token (or the whitespace after it if the template has none).

        Raises:
            DataError: The numbers of placeholders and images differ, or the template rejects the
                messages or drops one.
            CheckpointError: The tokenizer has neither a chat template nor known turn tokens.
        """
        turns = [_role_and_content(message) for message in messages]
        grids = _images_of_turns(turns, images)
        parts = _TURN_PATTERN.split(self._render(turns, add_generation_prompt))
        shown = [int(index) for index in parts[1::2]]
        for index, (role, _) in enumerate(turns):
            if shown.count(index) != 1:
                raise DataError(
                    f"chat: the model's chat template writes turn {index + 1} ({role}) "
                    f"{shown.count(index)} times instead of once. Remove that turn."
                )
        pieces = self._template_pieces(parts[0], ends_turn=False)
        for index, template in zip(shown, parts[2::2], strict=True):
            role, content = turns[index]
            trained = role == "assistant"
            pieces += self._content_pieces(content, grids[index], trained)
            pieces += self._template_pieces(template, ends_turn=trained)
        return self._encode_pieces(pieces)

    def _bos(self) -> list[int]:
        return [] if self.bos is None else [self.bos]

    def _render(self, turns: list[tuple[str, str]], add_generation_prompt: bool) -> str:
        conversation = [
            {"role": role, "content": _TURN.format(index)} for index, (role, _) in enumerate(turns)
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
                f"chat: the model's chat template rejected the messages ({error}). "
                "Alternate user and assistant turns, with at most one system turn first."
            ) from error
        return cast("str", rendered)

    def _special_tokens(self) -> dict[str, tuple[int, AddedToken]]:
        """Map each special token to its id and properties."""
        if self._special is None:
            self._special = {
                token.content: (token_id, token)
                for token_id, token in self.tokenizer.added_tokens_decoder.items()
                if token.special
            }
        return self._special

    def _template_pieces(self, text: str, *, ends_turn: bool) -> list[Piece]:
        """Split template text at its special tokens; train on the one that ends an answer."""
        tokens = self._special_tokens()
        longest_first = sorted(tokens, key=len, reverse=True)
        pattern = "(" + "|".join(map(re.escape, longest_first)) + ")"
        parts = re.split(pattern, text) if tokens else [text]
        if len(parts) == 1 and ends_turn:  # the whitespace after an answer marks its end
            rest = text.lstrip()
            return [(text[: len(text) - len(rest)], True), (rest, False)]
        pieces: list[Piece] = []
        strip_next = False
        for position, part in enumerate(parts):
            trained = ends_turn and position < 2
            if position % 2 == 0:
                pieces.append((part.lstrip() if strip_next else part, trained))
                continue
            token_id, token = tokens[part]
            if token.lstrip:
                pieces[-1] = (cast("str", pieces[-1][0]).rstrip(), pieces[-1][1])
            pieces.append(([token_id], trained))
            strip_next = token.rstrip
        return pieces

    def _content_pieces(self, content: str, grids: list[Codes], trained: bool) -> list[Piece]:
        first, *others = content.split(prompts.IMAGE_PLACEHOLDER)
        pieces: list[Piece] = [(first, trained)]
        for grid, text in zip(grids, others, strict=True):
            pieces.append((self.image(grid), trained))
            pieces.append(("\n" + text.removeprefix("\n"), trained))
        return pieces

    def _encode_pieces(self, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
        """Tokenize adjacent text together, which gives the same tokens as the whole text.

        Text is split where an answer starts or ends because inference splits there too.
        """
        token_ids: list[int] = []
        mask: list[bool] = []
        text, text_trained = "", False

        def extend(tokens: list[int], trained: bool) -> None:
            token_ids.extend(tokens)
            mask.extend([trained] * len(tokens))

        for piece, trained in pieces:
            if trained != text_trained or not isinstance(piece, str):
                extend(self.encode(text), text_trained)
                text = ""
            if isinstance(piece, str):
                text += piece
            else:
                extend(piece, trained)
            text_trained = trained
        extend(self.encode(text), text_trained)
        return token_ids, mask


def _role_and_content(message: Turn | Mapping[str, str]) -> tuple[str, str]:
    if isinstance(message, Mapping):
        return message["role"], message["content"].strip()
    return message.role, message.content.strip()


def _images_of_turns(turns: list[tuple[str, str]], images: Sequence[Codes]) -> list[list[Codes]]:
    counts = [content.count(prompts.IMAGE_PLACEHOLDER) for _, content in turns]
    if sum(counts) != len(images):
        raise DataError(
            f"chat: expected one {prompts.IMAGE_PLACEHOLDER} in the messages for each image, got "
            f"{sum(counts)} for {len(images)} images."
        )
    remaining = iter(images)
    return [[next(remaining) for _ in range(count)] for count in counts]
