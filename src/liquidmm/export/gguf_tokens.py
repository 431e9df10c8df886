r"""A tokenizer and the image codes as a GGUF vocabulary: one token for every row of the table.

Contract: llama.cpp, given what stands here, makes the ids of the Hugging Face tokenizer, or
exporting is refused. One thing differs: where a sentencepiece tokenizer puts a blank before text,
llama.cpp does so even if the text begins with one. Image codes and markers are control tokens,
never shown as text and found in text only by who asks for special tokens. Rows without a token are
marked unused.

llama.cpp knows how a byte-level vocabulary splits text into words by a name from its own list
(`PRE_TOKENIZERS`; https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). The name
is looked up by what `tokenizer.json` itself says of its splitting, so that a vocabulary nobody has
seen before is fine as long as it splits text in a known way. Of a sentencepiece vocabulary
llama.cpp wants a score for each piece instead of merges: the earlier a piece is merged, the higher.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
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
"""Steps of splitting -> llama.cpp's name for them."""

_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Names under which a word that is a token is never cut (`ignore_merges`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTable:
    """What a GGUF file says of its tokenizer."""

    model: str
    """"gpt2" (byte-level) or "llama" (sentencepiece)."""
    pre: str
    """Name of the splitting; "default" for sentencepiece, which doesn't split."""
    tokens: list[str]
    """Token of each row, as the vocabulary spells it."""
    types: list[int]
    """Type of each row."""
    merges: list[str] | None
    """Pairs to merge, best first, with a blank between; byte-level only."""
    scores: list[float] | None
    """Score of each row; sentencepiece only."""
    space_prefix: bool
    """Whether text gets a blank in front."""


def token_table(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, rows: int
) -> TokenTable:
    """Write a tokenizer and the image codes as a GGUF vocabulary.

    Args:
        tokenizer: A tokenizer with a `tokenizer.json`.
        vocabulary: Where the codes lie.
        rows: Rows of the model's table, at least `vocabulary.size`.

    Raises:
        CheckpointError: llama.cpp would cut text in another way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(f"a {type(tokenizer).__name__} has no tokenizer.json")
    state: dict[str, Any] = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("dropout"):
        raise _refusal(f"a {model['type']} vocabulary is neither byte-level nor sentencepiece BPE")
    merges = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1))
        for pair in model["merges"]
    ]
    tokens, types = _rows(state, vocabulary, rows)
    if model.get("byte_fallback"):
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = UNKNOWN
        return TokenTable(
            model="llama",
            pre="default",
            tokens=tokens,
            types=types,
            merges=None,
            scores=_scores(tokens, types, merges),
            space_prefix=_space_prefix(state),
        )
    return TokenTable(
        model="gpt2",
        pre=pre_tokenizer(state),
        tokens=tokens,
        types=types,
        merges=[" ".join(pair) for pair in merges],
        scores=None,
        space_prefix=False,
    )


def pre_tokenizer(state: Mapping[str, Any]) -> str:
    """Find llama.cpp's name for how a byte-level tokenizer splits text.

    Args:
        state: The content of `tokenizer.json`.

    Raises:
        CheckpointError: llama.cpp has no such way, as far as is known here.
    """
    normalizer = state.get("normalizer")
    # llama.cpp leaves text as it is; text in the usual composed form is not changed by NFC either.
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refusal(f"its normalizer {normalizer['type']} is none of llama.cpp's")
    steps = tuple(map(_step, _parts(state.get("pre_tokenizer"), "pretokenizers")))
    name = PRE_TOKENIZERS.get(steps)
    if name is None or bool(state["model"].get("ignore_merges")) != (name in _WHOLE_WORDS):
        raise _refusal(
            f"its way of splitting text ({', '.join(str(step[0]) for step in steps) or 'none'}) "
            "has no name that is known here"
        )
    return name


def _parts(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _step(part: Mapping[str, Any]) -> tuple[object, ...]:
    """Give what of one step of splitting makes a difference."""
    kind = part["type"]
    if kind == "Digits":
        return kind, part["individual_digits"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return kind, part["use_regex"]
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return kind, part["pattern"].get("Regex")
    return kind, json.dumps(part)


def _rows(
    state: Mapping[str, Any], vocabulary: Vocabulary, rows: int
) -> tuple[list[str], list[int]]:
    """Name every row and give it a type."""
    model, added = state["model"], state["added_tokens"]
    names = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    if model.get("byte_fallback"):
        pieces = {f"<0x{byte:02X}>" for byte in range(256)}
        kinds |= {index: BYTE for index, token in names.items() if token in pieces}
        if sum(kind == BYTE for kind in kinds.values()) != 256:
            raise _refusal("a sentencepiece vocabulary must have a token for each byte")
    for token in added:
        names[token["id"]] = token["content"]
        # A run of blanks is merged like any piece; as a user's token it would be shown as it is.
        if token["special"] or token["content"].strip("▁"):
            kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(names) >= vocabulary.text_size:
        raise _refusal(f"its token {names[max(names)]!r} stands behind the text's rows")
    for code, index in enumerate(range(vocabulary.image_slice.start, vocabulary.image_slice.stop)):
        names[index], kinds[index] = f"<|image_{code}|>", CONTROL
    tokens = [names.get(index, f"<|unused_{index}|>") for index in range(rows)]
    if len(set(tokens)) != rows:
        raise _refusal("two of its tokens have one name")
    return tokens, [kinds.get(index, UNUSED) for index in range(rows)]


def _space_prefix(state: Mapping[str, Any]) -> bool:
    """Tell whether a sentencepiece tokenizer puts a blank before text; refuse what else it does."""
    normalizers = _parts(state.get("normalizer"), "normalizers")
    splits = _parts(state.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    for part in [*normalizers, *splits]:
        if part["type"] == "Prepend" and part["prepend"] == "▁":
            prefix = True
        elif part["type"] == "Metaspace" and part["replacement"] == "▁" and not part["split"]:
            prefix = part["prepend_scheme"] != "never"
        elif part.get("pattern") != {"String": " "} or part.get("content", "▁") != "▁":
            raise _refusal(f"its step {part['type']} is none of sentencepiece's")
    return prefix


def _scores(
    tokens: Collection[str], types: Collection[int], merges: Collection[tuple[str, ...]]
) -> list[float]:
    """Give each piece a score, such that merging by score is merging in the given order.

    Scores rank pieces, merges rank pairs. Both mean the same if all pairs that make one piece
    follow one another, and if every pair of pieces that makes a piece may be merged.
    """
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        piece = left + right
        if piece != last and piece in ranks:
            raise _refusal(f"its merges make {piece!r} at two ranks")
        last = piece
        ranks.setdefault(piece, len(ranks))
    pairs, known = set(merges), set(tokens)
    for token, kind in zip(tokens, types, strict=True):
        if kind == NORMAL and any(pair not in pairs for pair in _splits(token, known)):
            raise _refusal(f"its merges don't make {token!r} of all its parts")
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _splits(token: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(token)):
        if token[:cut] in known and token[cut:] in known:
            yield token[:cut], token[cut:]


def _refusal(reason: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer: llama.cpp can't be told how it works: {reason}. Serve this model with vLLM."
    )
