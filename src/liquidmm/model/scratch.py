r"""A small base language model made from nothing but texts, for when there is no pretrained one.

Contract: `build_base` writes a plain Hugging Face folder (a random Llama with a tied head and a
byte-level BPE tokenizer) that `expand` takes like any other. Equal texts and seed give equal files.
The tokenizer writes ``<|bos|>`` and ``<|eos|>`` nowhere by itself; `liquidmm.sequences` does. Three
``<|reserved_...|>`` tokens wait to become the image markers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liquidmm import prompts
from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL_TOKENS = (
    *(BOS, EOS, PAD, "<|im_start|>", "<|im_end|>"),
    *(f"<|reserved_{index}|>" for index in range(3)),
)
"""The first ids of the tokenizer, in order."""

_TEMPLATE_WEIGHT = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ScratchConfig:
    """Shape of the model. The defaults make 11 million parameters, 1.3 of them embeddings."""

    vocab_size: int = 4096
    """Ids of the tokenizer, special tokens included; few texts may give fewer."""
    hidden: int = 320
    """Width of the model; a multiple of `heads`."""
    layers: int = 8
    """Number of decoder layers."""
    heads: int = 5
    """Attention heads; a multiple of `kv_heads`."""
    kv_heads: int = 5
    """Key and value heads."""
    intermediate: int = 864
    """Width of the feed-forward layers."""
    context: int = 1024
    """Longest sequence in ids."""
    seed: int = 0
    """Seed of the weights."""

    def __post_init__(self) -> None:
        if self.vocab_size < 256 + len(SPECIAL_TOKENS):
            raise ConfigError(
                f"base.vocab_size: {self.vocab_size} is too small. "
                f"Give at least {256 + len(SPECIAL_TOKENS)}: all bytes and the special tokens."
            )
        for name in ("hidden", "layers", "heads", "kv_heads", "intermediate", "context"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"base.{name}: {getattr(self, name)} is not positive. Give at least 1."
                )
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError(
                f"base.heads: {self.heads} heads with {self.kv_heads} key-value heads don't fit a "
                f"width of {self.hidden}. The width must be an even multiple of the heads, and the "
                "heads a multiple of the key-value heads."
            )


def build_base(texts: Iterable[str], out: Path, config: ScratchConfig | None = None) -> Path:
    """Train a tokenizer on texts, draw random weights, and write both as one folder.

    Args:
        texts: What the tokenizer learns from; the more like the training data, the better.
        out: Folder to write; must be missing or empty.
        config: Shape and seed; None takes the defaults.

    Returns:
        ``out``.

    Raises:
        DataError: There is no text.
        LiquidError: The folder exists already or can't be written.
    """
    from liquidmm.model.checkpoint import quiet

    config = config or ScratchConfig()
    with atomic_folder(out) as folder, quiet():
        tokenizer = train_tokenizer(texts, config.vocab_size, config.context)
        build_model(config, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML template; digits are single tokens.

    Args:
        texts: Training texts; the prompts of `liquidmm.prompts` are added, so that their words
            become whole tokens.
        vocab_size: Wanted number of ids.
        context: Longest sequence the model takes.

    Raises:
        DataError: There is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    iterator = (text for text in texts if text.strip())
    first = next(iterator, None)
    if first is None:
        raise DataError("texts: there is no text to learn a vocabulary from. Give some.")
    templates = [*prompts.REQUESTS, prompts.CAPTION_PROMPT, "user\n", "assistant\n", "system\n"]

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
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
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = prompts.CHATML_TEMPLATE
    return tokenizer


def build_model(config: ScratchConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Draw a Llama's weights: normal with deviation 0.02, less where a residual stream is fed.

    The deviation of the two projections that feed the residual stream is divided by
    sqrt(2 x layers), as in GPT-2, so that the stream's variance doesn't grow with depth.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                initializer_range=0.02,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    generator = torch.Generator().manual_seed(config.seed)
    residual = 0.02 / math.sqrt(2 * config.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            feeds_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, residual if feeds_residual else 0.02, generator=generator)
    return model


def read_texts(path: Path) -> Iterator[str]:
    """Read every text of a JSON lines file of records, whatever their kind.

    Args:
        path: One JSON object on each line; `text`, `caption`, `captions`, `text_prompt` and the
            contents of `messages` are taken.

    Yields:
        One text after the other, image placeholders removed.

    Raises:
        DataError: The file can't be read, or a line is no JSON object.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _texts_of(_record(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}). Name a JSON lines file.") from error


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is no JSON ({error}). Write one object on each line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: is no JSON object ({line[:40]!r}). Write one on each line.")
    return record


def _texts_of(record: dict[str, Any]) -> Iterator[str]:
    for key in ("text", "caption", "text_prompt", "captions"):
        value = record.get(key, ())
        yield from (text for text in ([value] if isinstance(value, str) else value) if text)
    for message in record.get("messages", ()):
        placeholder = re.escape(prompts.IMAGE_PLACEHOLDER)
        yield re.sub(rf"{placeholder}\n?", "", message.get("content", ""))
