r"""A tokenizer and the image codes as a GGUF vocabulary, one token for every embedding row.

llama.cpp produces the same token ids as the Hugging Face tokenizer, or the export fails. There is
one difference: if a SentencePiece tokenizer puts a space before text, llama.cpp does this even if
the text starts with a space. Image codes and special tokens are control tokens, which are never
shown as text and are parsed from text only on request. Rows without a token are marked unused.

llama.cpp identifies how a byte-level vocabulary splits text by a name from its own list
(`PRE_TOKENIZERS`; https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). The
splitting steps in `tokenizer.json` determine the name, so a new vocabulary works if it splits text
in a known way. For a SentencePiece vocabulary, llama.cpp expects scores instead of merges: the
earlier a piece is merged, the higher its score.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from liquidmm.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquidmm.vocabulary import Vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of GGUF."""

_GPT2 = ("ByteLevel", True)
_BYTES = ("ByteLevel", False)
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS: dict[tuple[tuple[object, ...], ...], str] = {
    (_GPT2,): "gpt-2",
    (("Digits", True), _GPT2): "smollm",
    (("Split", _WORDS + r"\p{N}" + _REST), _BYTES): "qwen2",
    (("Split", _WORDS + r"\p{N}{1,3}" + _REST), _BYTES): "llama-bpe",
}
"""Splitting steps -> llama.cpp's name for them."""

_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Names for which words that are tokens are never split (`ignore_merges`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTable:
    """The tokenizer of a GGUF file."""

    model: str
    """"gpt2" (byte-level) or "llama" (SentencePiece)."""
    pre: str
    """Name of the pre-tokenizer; "default" for SentencePiece, which does not split text."""
    tokens: list[str]
    """Token of each row, as spelled in the vocabulary."""
    types: list[int]
    """Type of each row."""
    merges: list[str] | None = None
    """Pairs to merge, best first, separated by a space; byte-level only."""
    scores: list[float] | None = None
    """Score of each row; SentencePiece only."""
    space_prefix: bool = False
    """Whether a space is put before text."""


def token_table(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, rows: int
) -> TokenTable:
    """Convert a tokenizer and the image codes to a GGUF vocabulary.

    Args:
        tokenizer: A tokenizer with a `tokenizer.json`.
        vocabulary: Layout of text, special tokens and image codes.
        rows: Rows of the model's embedding table, at least `vocabulary.size`.

    Raises:
        CheckpointError: llama.cpp would tokenize text differently.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported(f"a {type(tokenizer).__name__} has no tokenizer.json")
    state: dict[str, Any] = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("dropout"):
        raise _unsupported(f"expected byte-level or SentencePiece BPE, got {model['type']}")
    merges = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1))
        for pair in model["merges"]
    ]
    named = _text_tokens(state)
    if max(named) >= vocabulary.text_size:
        raise _unsupported(f"the token {named[max(named)][0]!r} is outside the text rows")
    for code, row in enumerate(range(vocabulary.image_slice.start, vocabulary.image_slice.stop)):
        named[row] = (f"<|image_{code}|>", CONTROL)
    tokens = [named[row][0] if row in named else f"<|unused_{row}|>" for row in range(rows)]
    types = [named[row][1] if row in named else UNUSED for row in range(rows)]
    if len(set(tokens)) != rows:
        raise _unsupported("two tokens have the same name")
    if model.get("byte_fallback"):
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = UNKNOWN
        return TokenTable(
            model="llama",
            pre="default",
            tokens=tokens,
            types=types,
            scores=_scores(tokens, types, merges),
            space_prefix=space_prefix(state),
        )
    return TokenTable(
        model="gpt2",
        pre=pre_tokenizer(state),
        tokens=tokens,
        types=types,
        merges=[" ".join(pair) for pair in merges],
    )


def pre_tokenizer(state: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level `tokenizer.json`."""
    normalizer = state.get("normalizer")
    # llama.cpp does not normalize text; NFC does not change text in the usual composed form.
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _unsupported(f"expected no normalizer or NFC, got {normalizer['type']}")
    steps = tuple(map(_step, _parts(state.get("pre_tokenizer"), "pretokenizers")))
    name = PRE_TOKENIZERS.get(steps)
    if name is None or bool(state["model"].get("ignore_merges")) != (name in _WHOLE_WORDS):
        raise _unsupported(
            "there is no known name for its pre-tokenizer "
            f"({', '.join(str(step[0]) for step in steps) or 'none'})"
        )
    return name


def space_prefix(state: Mapping[str, Any]) -> bool:
    """Return whether the SentencePiece tokenizer of a `tokenizer.json` puts a space before text.

    Raises:
        CheckpointError: The tokenizer changes text in any other way.
    """
    normalizers = _parts(state.get("normalizer"), "normalizers")
    splits = _parts(state.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    for part in [*normalizers, *splits]:
        if part["type"] == "Prepend" and part["prepend"] == "▁":
            prefix = True
        elif part["type"] == "Metaspace" and part["replacement"] == "▁" and not part["split"]:
            prefix = part["prepend_scheme"] != "never"
        elif part.get("pattern") != {"String": " "} or part.get("content", "▁") != "▁":
            raise _unsupported(f"the step {part['type']} is not one of SentencePiece's")
    return prefix


def _parts(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _step(part: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the properties of a splitting step that affect the result."""
    kind = part["type"]
    if kind == "Digits":
        return kind, part["individual_digits"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return kind, part["use_regex"]
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return kind, part["pattern"].get("Regex")
    return kind, json.dumps(part)


def _text_tokens(state: Mapping[str, Any]) -> dict[int, tuple[str, int]]:
    """Return the name and type of each text row."""
    model = state["model"]
    found = {index: (token, NORMAL) for token, index in model["vocab"].items()}
    if model.get("byte_fallback"):
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        if any(piece not in model["vocab"] for piece in pieces):
            raise _unsupported("a SentencePiece vocabulary must have a token for each byte")
        found |= {model["vocab"][piece]: (piece, BYTE) for piece in pieces}
    for token in state["added_tokens"]:
        index, content = token["id"], token["content"]
        kind = found.get(index, ("", UNUSED))[1]
        # A run of spaces is merged like any piece; a user-defined token would be shown unchanged.
        if token["special"] or content.strip("▁"):
            kind = CONTROL if token["special"] else USER_DEFINED
        found[index] = (content, kind)
    return found


def _scores(
    tokens: Collection[str], types: Collection[int], merges: Collection[tuple[str, ...]]
) -> list[float]:
    """Score each piece so that merging by score equals merging in the given order.

    Scores rank pieces, and merges rank pairs. They are equivalent if all pairs that form the same
    piece are consecutive, and if every pair that forms a piece is in the merges.
    """
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        piece = left + right
        if piece != last and piece in ranks:
            raise _unsupported(f"its merges form {piece!r} at two ranks")
        last = piece
        ranks.setdefault(piece, len(ranks))
    pairs, known = set(merges), set(tokens)
    for token, kind in zip(tokens, types, strict=True):
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if kind == NORMAL and any(known.issuperset(pair) for pair in splits if pair not in pairs):
            raise _unsupported(f"its merges do not form {token!r} from all pairs of pieces")
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _unsupported(reason: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer: not supported by llama.cpp: {reason}. Serve this model with vLLM."
    )
