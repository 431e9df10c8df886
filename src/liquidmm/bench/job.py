"""What both sides of a training comparison train: the weights, the data and the settings.

Contract: a `Job` is plain values, so that each side makes the same model and the same rows of it in
its own process; only the way they are trained differs. The source is a run with its checkpoint and
shards, or a shape with random weights and random ids, whose speed is that of a trained model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from liquidmm.data.examples import IGNORE, Example, Task
from liquidmm.data.mixture import TokenStream
from liquidmm.data.packing import PackedSequence, PackingConfig, pack
from liquidmm.model.checkpoint import load_language_model, local_folder
from liquidmm.train.config import LoopConfig, TrainConfig
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig
from liquidmm.train.setup import open_setup

_PICTURE = 1024
"""Codes of a picture of 512 x 512 pixels."""
_TEXT = 2000
"""Ids of a text document, on average: 60 billion in 30 million (paper)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A Llama of random weights."""

    name: str
    """What its figures are called by."""
    hidden: int
    """Width of the residual stream."""
    layers: int
    """Decoder blocks."""
    heads: int
    """Heads of the queries."""
    kv_heads: int
    """Heads of keys and values."""
    intermediate: int
    """Width of the feed-forward layers."""
    vocabulary: int
    """Rows of the table, image codes included."""
    tied: bool
    """Whether the head is the embedding table."""
    micro_rows: int
    """Rows that are computed at a time."""
    rows: int = 16
    """Rows of a step."""
    length: int = 2048
    """Ids in a row."""

    def config(self) -> LlamaConfig:
        """Give the configuration of the model."""
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.length,
            bos_token_id=None,
            eos_token_id=None,
        )


class Rows(Protocol):
    """An endless stream of packed rows."""

    def take(self, lanes: range) -> list[PackedSequence]:
        """Take the next row of some lanes; see `TokenStream`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training, to be done in several ways."""

    source: TrainConfig | Shape
    """Where weights and rows come from."""
    loop: LoopConfig
    """Rows of a step and the type of the products."""
    model: ModelConfig
    """How our side computes the model."""
    optim: OptimConfig
    """The optimizer, on all sides; AdamW."""
    device: str
    """Where it is trained."""

    @property
    def lanes(self) -> range:
        """The lanes that one step takes a row of."""
        return range(self.loop.global_batch_size)

    @property
    def precision(self) -> torch.dtype:
        """Type of the products."""
        return cast("torch.dtype", getattr(torch, self.loop.precision))

    def language_model(self, attention: str | None = None) -> PreTrainedModel:
        """Make the stock model in float32.

        Args:
            attention: Kernel of the attention; None leaves it to transformers.

        Returns:
            The model: a checkpoint's on the CPU, one of random weights on the device.
        """
        options = {} if attention is None else {"attn_implementation": attention}
        if isinstance(self.source, TrainConfig):
            folder = local_folder(str(self.source.checkpoint))
            return load_language_model(folder, torch.float32, **options)
        with torch.device(self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                self.source.config(), dtype=torch.float32, **options
            )
        return cast("PreTrainedModel", model)

    def rows(self) -> Rows:
        """Open the stream at its beginning.

        Raises:
            CheckpointError: The checkpoint isn't one, or is broken.
            DataError: A folder of shards can't be read or doesn't fit the checkpoint.
        """
        if isinstance(self.source, TrainConfig):
            stream: TokenStream = open_setup(self.source, 1, torch.device("cpu")).stream
            return stream
        return RandomRows(self.source.vocabulary, self.source.length)


class RandomRows:
    """Rows of random ids, in documents as long as those of the paper's two kinds of data.

    Half of them are pictures of 1,024 codes with a caption of 16 to 80 ids, of which the codes are
    learnt; half are texts of 64 ids and, on average, 2,000 more (exponential), cut where they are
    longer than a row. Where a row is too short for a picture, the picture takes half of it, the
    caption at most an eighth, and a text is a row on average.
    """

    def __init__(self, vocabulary: int, length: int, seed: int = 0) -> None:
        """Begin the stream.

        Args:
            vocabulary: Ids are drawn from 0 up to this one.
            length: Ids in a row, at least 128.
            seed: Decides all of it.
        """
        self._vocabulary = vocabulary
        self._length = length
        self._rng = np.random.default_rng(seed)
        self._rows = self._packed()

    def take(self, lanes: range) -> list[PackedSequence]:
        """Take as many rows as there are lanes; they all come from one stream."""
        return [next(self._rows) for _ in lanes]

    def _packed(self) -> Iterator[PackedSequence]:
        config, examples = PackingConfig(length=self._length), self._examples()
        while True:
            yield from pack(islice(examples, config.window), config)

    def _examples(self) -> Iterator[Example]:
        codes = min(_PICTURE, self._length // 2)
        while True:
            caption = int(self._rng.integers(16, min(80, self._length // 8) + 1))
            yield self._example(caption, codes)
            mean = min(_TEXT, self._length)
            yield self._example(0, 64 + round(self._rng.exponential(mean)))

    def _example(self, given: int, learnt: int) -> Example:
        ids = self._rng.integers(0, self._vocabulary, given + learnt).astype(np.int32)
        labels = ids.copy()
        labels[:given] = IGNORE
        task: Task = "text_to_image" if given else "text"
        return Example(input_ids=ids, labels=labels, task=task, splittable=not given)
