"""Text: how well a language model predicts held-out text, and the same for another model beside it.

Documents are cut into passages of at most ``PASSAGE`` characters before tokenizing, so that models
with different tokenizers see the same text with the same room. Each passage starts fresh after the
model's begin marker (its end marker where it has none) and is scored over the model's whole
vocabulary, image codes included. Bits per byte compares across tokenizers, perplexity per token
does not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from liquidmm import runtime
from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import TextRecord
from liquidmm.errors import CheckpointError, DataError
from liquidmm.evaluate.gallery import need
from liquidmm.evaluate.metrics import bits_per_byte, perplexity
from liquidmm.evaluate.report import Context
from liquidmm.model.checkpoint import Checkpoint, load_language_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGE = 1000
"""Most characters of a passage."""

LENGTH = 2048
"""Most tokens that are scored at once, where the model takes so many."""


def text(context: Context) -> None:
    """Perplexity and bits per byte of the checkpoint, and of ``--baseline`` beside it.

    Raises:
        DataError: The text is missing or has no held-out part.
        CheckpointError: The baseline cannot be loaded.
    """
    passages = read_passages(context.data, context.n, context.seed)
    device = runtime.resolve_device(context.device)
    checkpoint = Checkpoint.load(context.checkpoint, context.device)
    _measure(context, "", checkpoint.model, checkpoint.processor.tokenizer, passages)
    if context.baseline is not None:
        _measure(context, "baseline_", *_load_plain(context.baseline, device), passages)
    context.report.number("n", len(passages), "passages")
    context.report.number("bytes", sum(len(passage.encode()) for passage in passages), "bytes")


def read_passages(folder: Path, n: int, seed: int) -> list[str]:
    """Seeded sample of passages of the held-out documents.

    Args:
        folder: Folder with ``text.jsonl``.
        n: Wanted number of passages.
        seed: The same seed gives the same passages.

    Raises:
        DataError: There is no such file, or nothing in it is held out.
    """
    command = "liquid data text"
    path = need(folder, "text.jsonl", command)
    pool = []
    for record in read_jsonl(path):
        if isinstance(record, TextRecord) and record.split.startswith("held_out"):
            pool += [record.text[i : i + PASSAGE] for i in range(0, len(record.text), PASSAGE)]
    pool = [passage for passage in pool if passage.strip()]
    if not pool:
        raise DataError(f"{path}: no text with split 'held_out'. Make it again with `{command}`.")
    order = np.random.default_rng(seed).permutation(len(pool))
    return [pool[place] for place in order[:n]]


def _load_plain(folder: Path, device: torch.device) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    """Any causal language model in Hugging Face's layout."""
    from transformers import AutoTokenizer

    model: nn.Module = load_language_model(folder, runtime.resolve_dtype("auto", device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: no tokenizer ({str(error).splitlines()[0]}). "
            "Name a folder with a language model and its tokenizer."
        ) from error
    return model.to(device).eval(), tokenizer


def _measure(
    context: Context,
    prefix: str,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    passages: Sequence[str],
) -> None:
    """Score all passages with one model and add its figures."""
    label = f"{prefix}text"
    nats, tokens = score(
        model, tokenizer, passages, lambda done: context.progress(label, done, len(passages))
    )
    size = sum(len(passage.encode()) for passage in passages)
    context.report.number(f"{prefix}perplexity", perplexity(nats, tokens), "per token")
    context.report.number(f"{prefix}bits_per_byte", bits_per_byte(nats, size), "bits/byte")
    context.report.number(f"{prefix}tokens", tokens, "tokens")


@torch.no_grad()
def score(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    passages: Sequence[str],
    on_passage: Callable[[int], None] = lambda _: None,
) -> tuple[float, int]:
    """Negative log-likelihood of some passages, each on its own.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer, with a begin or an end marker.
        passages: Texts; special tokens in them are read as plain text.
        on_passage: Told how many are done.

    Returns:
        Sum over all tokens in nats, and the number of tokens.

    Raises:
        CheckpointError: The tokenizer has neither marker.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise CheckpointError(
            "text: the tokenizer has no begin and no end marker. "
            "Add one of them to its configuration."
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
