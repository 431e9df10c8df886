"""A small random language model and its tokenizer, created only from texts.

`create_base_model` writes a plain Hugging Face folder (a random Llama with a tied head and a
byte-level BPE tokenizer) that `expand` accepts like any other. The same texts and seed give the
same files. The tokenizer never adds ``<|bos|>`` or ``<|eos|>``; `liquidmm.sequences` adds them. Its
three ``<|reserved_...|>`` tokens become the image special tokens when the model is expanded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from liquidmm import prompts
from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.ranges import check_ranges
from liquidmm.runtime import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
BASE_SPECIAL_TOKENS = (
    *(BOS, EOS, PAD, "<|im_start|>", "<|im_end|>"),
    *(f"<|reserved_{index}|>" for index in range(3)),
)
"""The first tokens of the tokenizer, in order of their ids."""

_TEMPLATE_WEIGHT = 200
_INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Shape of the model. The defaults give 11M parameters, including 1.3M in embeddings."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "intermediate": "intermediate_size",
        "context": "max_position_embeddings",
    }

    vocab_size: Annotated[int, Ge(256 + len(BASE_SPECIAL_TOKENS))] = 4096
    """Size of the tokenizer, including 256 bytes and 8 special tokens; small amounts of text can
    give fewer tokens."""
    hidden_size: Annotated[int, Ge(1)] = 320
    """Width of the model; a multiple of twice `num_attention_heads`."""
    num_hidden_layers: Annotated[int, Ge(1)] = 8
    """Decoder layers."""
    num_attention_heads: Annotated[int, Ge(1)] = 5
    """Attention heads; a multiple of `num_key_value_heads`."""
    num_key_value_heads: Annotated[int, Ge(1)] = 5
    """Key and value heads."""
    intermediate_size: Annotated[int, Ge(1)] = 864
    """Width of the feed-forward layers."""
    max_position_embeddings: Annotated[int, Ge(1)] = 1024
    """Maximum sequence length in tokens."""
    seed: int = 0
    """Seed of the weights."""

    def __post_init__(self) -> None:
        check_ranges(self)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads) or heads % kv_heads:
            raise ConfigError(
                f"num_attention_heads: {heads} does not fit hidden_size {self.hidden_size} and "
                f"num_key_value_heads {kv_heads}. hidden_size must be a multiple of twice "
                "num_attention_heads, which must be a multiple of num_key_value_heads."
            )


def create_base_model(texts: Iterable[str], out: Path, config: InitConfig | None = None) -> Path:
    """Train a tokenizer on texts, create random weights, and write both to the folder ``out``.

    Raises:
        DataError: All texts are empty.
        LiquidError: The folder exists already or cannot be written.
    """
    from liquidmm.model.checkpoint import quiet

    config = config or InitConfig()
    with atomic_folder(out) as folder, quiet():
        tokenizer = train_text_tokenizer(texts, config.vocab_size, config.max_position_embeddings)
        build_model(config, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML template; digits are single tokens.

    The prompts of `liquidmm.prompts` are added to the texts so that their words become whole
    tokens.

    Raises:
        DataError: All texts are empty.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    iterator = (text for text in texts if text.strip())
    first = next(iterator, None)
    if first is None:
        raise DataError("texts: expected at least one non-empty text, got none.")
    templates = [*prompts.REQUESTS, prompts.CAPTION_PROMPT, "user\n", "assistant\n", "system\n"]

    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(BASE_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(chain([first], iterator, templates * _TEMPLATE_WEIGHT), trainer)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = prompts.CHATML_TEMPLATE
    return tokenizer


def build_model(config: InitConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Create a Llama with normally distributed weights of standard deviation 0.02.

    As in GPT-2, the deviation is divided by sqrt(2 x layers) for the two projections that feed the
    residual stream, so the stream's variance does not grow with depth.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                max_position_embeddings=config.max_position_embeddings,
                tie_word_embeddings=True,
                initializer_range=_INITIALIZER_RANGE,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    random = generator(config.seed)
    residual_std = _INITIALIZER_RANGE / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            feeds_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = residual_std if feeds_residual else _INITIALIZER_RANGE
            parameter.normal_(0.0, std, generator=random)
    return model


def read_texts(path: Path) -> Iterator[str]:
    """Yield every text of a JSON Lines file of records of any kind, without image placeholders.

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _texts_of(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected a JSON Lines file.") from error


def _texts_of(line: str, where: str) -> Iterator[str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: invalid JSON ({error}). Write one object per line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {line[:40]!r}.")
    for key in ("text", "caption", "text_prompt", "captions"):
        value = record.get(key, ())
        yield from (text for text in ([value] if isinstance(value, str) else value) if text)
    for message in record.get("messages", ()):
        text = message.get("content", "")
        yield re.sub(rf"{re.escape(prompts.IMAGE_PLACEHOLDER)}\n?", "", text)
