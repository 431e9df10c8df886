"""The three image special tokens of a tokenizer.

`<boi>`, `<eoi>` and `<unconditional>` replace three unused tokens of the tokenizer (such as Gemma's
`<unused0>` or Llama 3's `<|reserved_special_token_0|>`), as in the published checkpoint. A
tokenizer without such tokens gets new ids, starting at ``len(tokenizer)``: padding rows of the
embedding if there are any, else new rows. The new ids survive saving and loading, and every other
token keeps its id.
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


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the three special tokens.

    Args:
        tokenizer: A tokenizer without them; it is not changed if tokens are renamed.
        rows: Rows of the model's embedding; only unused tokens with a row are renamed.

    Raises:
        CheckpointError: The tokenizer's format does not keep the ids.
    """
    vocabulary = dict(tokenizer.get_vocab())
    unused = _unused_tokens(tokenizer, rows)
    if len(unused) >= len(SPECIAL_TOKENS):
        names = dict(zip(unused, SPECIAL_TOKENS, strict=False))
        tokenizer = _rename_tokens(tokenizer, names)
        vocabulary = {names.get(token, token): index for token, index in vocabulary.items()}
    tokenizer.add_special_tokens(
        cast("Any", {"extra_special_tokens": list(SPECIAL_TOKENS)}),
        replace_extra_special_tokens=False,
    )
    found = tokenizer.get_vocab()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        reloaded = load_tokenizer(Path(folder)).get_vocab()
    kept = all(found.get(token) == index for token, index in vocabulary.items())
    if not kept or any(reloaded.get(token) != found[token] for token in SPECIAL_TOKENS):
        raise CheckpointError(
            f"tokenizer: a {type(tokenizer).__name__} does not keep its ids when tokens are added. "
            "Add a tokenizer.json to the base."
        )
    return tokenizer


def _unused_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """Return up to three unused tokens, in the order of their ids."""
    used = set(tokenizer.special_tokens_map.values())
    template = str(tokenizer.chat_template or "")
    candidates = sorted(
        (index, token)
        for token, index in tokenizer.get_vocab().items()
        if index < rows and _UNUSED.fullmatch(token)
    )
    unused = [token for _, token in candidates if token not in used and token not in template]
    return unused[: len(SPECIAL_TOKENS)]


def _rename_tokens(
    tokenizer: PreTrainedTokenizerBase, names: dict[str, str]
) -> PreTrainedTokenizerBase:
    """Rename tokens in the tokenizer's files and reload it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for path in (folder / file for file in _FILES):
            if path.is_file():
                data = _replace_strings(json.loads(path.read_text(encoding="utf-8")), names)
                for token in data.get("added_tokens", ()) if isinstance(data, dict) else ():
                    token["special"] = token["special"] or token["content"] in SPECIAL_TOKENS
                path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder)


def _replace_strings(data: Any, names: dict[str, str]) -> Any:
    """Replace whole strings, including keys, everywhere in a JSON value."""
    if isinstance(data, str):
        return names.get(data, data)
    if isinstance(data, list):
        return [_replace_strings(item, names) for item in data]
    if isinstance(data, dict):
        return {names.get(key, key): _replace_strings(value, names) for key, value in data.items()}
    return data
