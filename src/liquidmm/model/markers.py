"""The three image markers: a tokenizer without them -> a tokenizer that knows them.

Contract: afterwards `<boi>`, `<eoi>` and `<unconditional>` are special tokens with fixed ids that
survive saving and loading, and every other token keeps its id. Unused tokens are renamed where the
tokenizer has three; otherwise tokens are added at the end.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from liquidmm.errors import CheckpointError
from liquidmm.model.processor import load_tokenizer
from liquidmm.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Gemma <unused0>, Llama 3 <|reserved_special_token_0|>, Qwen <|extra_0|>, Phi <|placeholder1|> and
# <|dummy_0|>, Mistral [control_8] and <SPECIAL_20>.
_UNUSED = re.compile(
    r"[<\[]\|?(unused|reserved|reserved_special_token|extra|placeholder|dummy|control|SPECIAL)"
    r"_?\d+\|?[>\]]"
)
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def add_special_tokens_to(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Give a tokenizer the three markers.

    Args:
        tokenizer: A tokenizer that knows none of them; it isn't changed when tokens are renamed.
        rows: Rows of the model's table; an unused token must have one.

    Returns:
        The tokenizer with the markers.

    Raises:
        CheckpointError: The tokenizer's format doesn't keep the ids that it gave the markers.
    """
    vocabulary = dict(tokenizer.get_vocab())
    unused = unused_tokens(tokenizer, rows)
    if len(unused) >= len(SPECIAL_TOKENS):
        renamed = dict(zip(unused, SPECIAL_TOKENS, strict=False))
        tokenizer = _renamed(tokenizer, renamed)
        vocabulary = {renamed.get(token, token): index for token, index in vocabulary.items()}
    tokenizer.add_special_tokens(
        cast("Any", {"extra_special_tokens": list(SPECIAL_TOKENS)}),
        replace_extra_special_tokens=False,
    )
    found = tokenizer.get_vocab()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        again = load_tokenizer(Path(folder)).get_vocab()
    kept = all(found.get(token) == index for token, index in vocabulary.items())
    if not kept or any(again.get(marker) != found[marker] for marker in SPECIAL_TOKENS):
        raise CheckpointError(
            f"tokenizer: a {type(tokenizer).__name__} doesn't keep its ids when tokens are added. "
            "Give the base a tokenizer.json."
        )
    return tokenizer


def unused_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """Return the first three tokens that nothing uses, by id; fewer or none if there aren't any."""
    named = set(tokenizer.special_tokens_map.values())
    template = str(tokenizer.chat_template or "")
    candidates = sorted(
        (index, token)
        for token, index in tokenizer.get_vocab().items()
        if index < rows and _UNUSED.fullmatch(token)
    )
    free = [token for _, token in candidates if token not in named and token not in template]
    return free[: len(SPECIAL_TOKENS)]


def _renamed(tokenizer: PreTrainedTokenizerBase, names: dict[str, str]) -> PreTrainedTokenizerBase:
    """Rename tokens in the tokenizer's own files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for path in (folder / file for file in _FILES):
            if path.is_file():
                data = _replaced(json.loads(path.read_text(encoding="utf-8")), names)
                for token in data.get("added_tokens", ()) if isinstance(data, dict) else ():
                    token["special"] = token["special"] or token["content"] in SPECIAL_TOKENS
                path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder)


def _replaced(data: Any, names: dict[str, str]) -> Any:
    """Replace whole strings, keys included, everywhere in a JSON value."""
    if isinstance(data, str):
        return names.get(data, data)
    if isinstance(data, list):
        return [_replaced(item, names) for item in data]
    if isinstance(data, dict):
        return {names.get(key, key): _replaced(value, names) for key, value in data.items()}
    return data
