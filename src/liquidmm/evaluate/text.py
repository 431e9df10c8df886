"""Text: how well a language model predicts held-out text, optionally compared with another model.

Documents are split into passages of at most ``PASSAGE`` characters before tokenization, so models
with different tokenizers see the same text. Each passage follows the BOS token (or the EOS token if
there is none) and is scored over the whole vocabulary, including image tokens. Bits per byte are
comparable across tokenizers, but perplexity is not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import TextRecord
from liquidmm.errors import CheckpointError, DataError
from liquidmm.evaluate.metrics import bits_per_byte, perplexity
from liquidmm.evaluate.runner import Context, Task, require_file
from liquidmm.model.checkpoint import Checkpoint, load_language_model
from liquidmm.runtime import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGE = 1000
"""Maximum number of characters in a passage."""

LENGTH = 2048
"""Maximum number of tokens to score at once."""


def text(context: Context) -> None:
    """Measure perplexity and bits per byte of the checkpoint and of the baseline.

    Raises:
        DataError: The text is missing, or none of it is held out.
        CheckpointError: The baseline cannot be loaded.
    """
    config = context.config
    passages = read_passages(context.data, context.limit, config.seed)
    checkpoint = Checkpoint.load(config.checkpoint, config.device)
    _measure(context, "", checkpoint.model, checkpoint.processor.tokenizer, passages)
    if config.baseline is not None:
        device = resolve_device(config.device)
        _measure(context, "baseline_", *_load_baseline(config.baseline, device), passages)
    context.report.add("n", len(passages), "passages")
    context.report.add("bytes", sum(len(passage.encode()) for passage in passages), "bytes")


TEXT = Task(run=text, data=Path("data/text"), limit=300)
"""Perplexity and bits per byte on held-out text."""


def read_passages(folder: Path, limit: int, seed: int) -> list[str]:
    """Choose at most ``limit`` passages from the held-out documents in ``text.jsonl`` of a folder.

    Raises:
        DataError: The file does not exist, or none of it is held out.
    """
    path = require_file(folder, "text.jsonl")
    pool = []
    for record in read_jsonl(path):
        if isinstance(record, TextRecord) and record.split.startswith("held_out"):
            pool += [record.text[i : i + PASSAGE] for i in range(0, len(record.text), PASSAGE)]
    pool = [passage for passage in pool if passage.strip()]
    if not pool:
        raise DataError(
            f"{path}: contains no text with split 'held_out'. Add such text, or build the built-in "
            "text again with `liquid icons build`."
        )
    order = np.random.default_rng(seed).permutation(len(pool))
    return [pool[place] for place in order[:limit]]


def _load_baseline(
    folder: Path, device: torch.device
) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    from transformers import AutoTokenizer

    model: nn.Module = load_language_model(folder, resolve_dtype("auto", device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: contains no tokenizer ({str(error).splitlines()[0]}). "
            "Pass a folder with a language model and its tokenizer."
        ) from error
    return model.to(device).eval(), tokenizer


def _measure(
    context: Context,
    prefix: str,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    passages: Sequence[str],
) -> None:
    """Score all passages with one model and report the results."""
    label = f"{prefix}text"
    nats, tokens = score(
        model, tokenizer, passages, lambda done: context.progress(label, done, len(passages))
    )
    size = sum(len(passage.encode()) for passage in passages)
    context.report.add(f"{prefix}perplexity", perplexity(nats, tokens), "per token")
    context.report.add(f"{prefix}bits_per_byte", bits_per_byte(nats, size), "bits/byte")
    context.report.add(f"{prefix}tokens", tokens, "tokens")


@torch.no_grad()
def score(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    passages: Sequence[str],
    on_passage: Callable[[int], None] = lambda _: None,
) -> tuple[float, int]:
    """Compute the negative log-likelihood of passages, each independent of the others.

    Special tokens in them are treated as plain text. ``on_passage`` receives the number of finished
    passages.

    Returns:
        Sum over all tokens in nats, and the number of tokens.

    Raises:
        CheckpointError: The tokenizer has neither a BOS nor an EOS token.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise CheckpointError(
            "tokenizer: has no BOS and no EOS token. Add one of them to its configuration."
        )
    config: Any = model.config
    room = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH)) - 1
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    for done, passage in enumerate(passages):
        on_passage(done)
        ids = tokenizer(passage, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for first in range(0, len(ids), room):
            row = torch.tensor([[start, *ids[first : first + room]]], device=device)
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
            nats += float(functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
        tokens += len(ids)
    on_passage(len(passages))
    return nats, tokens
