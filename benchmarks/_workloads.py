"""The models, prompts and data that all candidates of a comparison share.

A workload is a plain, picklable value: each candidate builds the same model and the same data from
it in its own process. The weights come from a checkpoint, or are random for a shape; a random model
is as fast as a trained one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from liquidmm.data.examples import IGNORE_INDEX, Example
from liquidmm.data.packing import PackedSequence, PackingConfig, pack
from liquidmm.generate.sampling import SamplingConfig, reference_sampling
from liquidmm.model.checkpoint import empty_language_model, load_language_model, local_folder
from liquidmm.model.processor import LiquidProcessor, read_vocabulary
from liquidmm.runtime import generator
from liquidmm.train.config import LoopConfig, TrainConfig
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig
from liquidmm.train.setup import open_setup
from liquidmm.vocabulary import Vocabulary

CODEBOOK = 8192
"""Image codes of every shape."""
_IMAGE_CODES = 1024
"""Codes of an image of 512 x 512 pixels."""
_TEXT_TOKENS = 2000
"""Mean tokens of a text document: 60 billion in 30 million (paper)."""
_CAPTIONS = (
    "a red apple, noto style",
    "two green fish",
    "a small house with a yellow roof and a tree, twemoji style",
    "an octopus, fluent 3d style",
    "a star",
    "a dog next to a bicycle, openmoji style",
    "a cup of coffee, fluent flat style",
    "the moon above a mountain",
)
_PROMPT_TOKENS = (24, 40)
"""Shortest and longest random prompt."""


def llama(hidden: int, layers: int, heads: int, kv_heads: int, **options: Any) -> LlamaConfig:
    """Return the configuration of a Llama."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with random weights."""

    name: str
    """Prefix of its metrics."""
    config: LlamaConfig
    micro_batch_size: int
    global_batch_size: int = 16
    seq_len: int = 2048

    def model(self, device: str, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
        """Build the model on a device; its weights are the same in each process."""
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                self.config, dtype=dtype, **options
            )
        return cast("PreTrainedModel", model)


# SmolLM2-135M, Llama-3.2-1B and Llama-2-7B with 8,192 codes. Training the last one takes 110 GB for
# weights, gradients and AdamW's averages in float32.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="135m",
            config=llama(
                576,
                30,
                9,
                3,
                intermediate_size=1536,
                vocab_size=49_152 + CODEBOOK,
                tie_word_embeddings=True,
            ),
            micro_batch_size=8,
        ),
        Shape(
            name="1b",
            config=llama(
                2048,
                16,
                32,
                8,
                intermediate_size=8192,
                vocab_size=128_256 + CODEBOOK,
                tie_word_embeddings=True,
            ),
            micro_batch_size=4,
        ),
        Shape(
            name="7b",
            config=llama(
                4096,
                32,
                32,
                32,
                intermediate_size=11_008,
                vocab_size=32_000 + CODEBOOK,
                tie_word_embeddings=False,
            ),
            micro_batch_size=1,
        ),
    )
}
"""Shapes by name."""


class Stream(Protocol):
    """An endless stream of packed sequences."""

    def next(self, streams: range) -> list[PackedSequence]:
        """Return the next sequence of some streams."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A model and data to train on, in several ways."""

    source: TrainConfig | Shape
    """Where weights and sequences come from."""
    loop: LoopConfig
    """Batch sizes and precision."""
    model: ModelConfig
    """How our candidate computes the model."""
    optim: OptimConfig
    """AdamW, for all candidates."""
    device: str

    @property
    def streams(self) -> range:
        """The streams of one step."""
        return range(self.loop.global_batch_size)

    @property
    def precision(self) -> torch.dtype:
        """Dtype of the matrix products."""
        return cast("torch.dtype", getattr(torch, self.loop.precision))

    def language_model(self, attn_implementation: str | None = None) -> PreTrainedModel:
        """Build the stock model in float32; a shape's on the device, a checkpoint's on the CPU."""
        options = {"attn_implementation": attn_implementation} if attn_implementation else {}
        if isinstance(self.source, Shape):
            return self.source.model(self.device, torch.float32, **options)
        folder = local_folder(str(self.source.checkpoint))
        return load_language_model(folder, torch.float32, **options)

    def open_stream(self) -> Stream:
        """Open the data at its beginning."""
        if isinstance(self.source, Shape):
            return RandomSequences(self.source.config.vocab_size, self.source.seq_len)
        return open_setup(self.source, 1, torch.device("cpu")).stream


class RandomSequences:
    """Packed sequences of random tokens, in documents as long as those of the paper.

    Half of the documents are images of 1,024 codes with a caption of 16 to 80 tokens, trained on
    the codes; half are texts of 64 tokens plus 2,000 on average (exponential). If a sequence is too
    short for that, an image is half of it, a caption at most an eighth, and the mean text all of
    it.
    """

    def __init__(self, vocab_size: int, seq_len: int, seed: int = 0) -> None:
        self._vocab_size = vocab_size
        self._seq_len = seq_len
        self._rng = np.random.default_rng(seed)
        self._sequences = self._packed()

    def next(self, streams: range) -> list[PackedSequence]:
        """Return as many sequences as there are streams; all come from one stream."""
        return [next(self._sequences) for _ in streams]

    def _packed(self) -> Iterator[PackedSequence]:
        config, examples = PackingConfig(seq_len=self._seq_len), self._examples()
        while True:
            yield from pack(islice(examples, config.packing_buffer), config)

    def _examples(self) -> Iterator[Example]:
        codes = min(_IMAGE_CODES, self._seq_len // 2)
        while True:
            caption = int(self._rng.integers(16, min(80, self._seq_len // 8) + 1))
            yield self._example(caption, codes)
            mean = min(_TEXT_TOKENS, self._seq_len)
            yield self._example(0, 64 + round(self._rng.exponential(mean)))

    def _example(self, prompt: int, trained: int) -> Example:
        ids = self._rng.integers(0, self._vocab_size, prompt + trained).astype(np.int32)
        labels = ids.copy()
        labels[:prompt] = IGNORE_INDEX
        return Example(
            input_ids=ids,
            labels=labels,
            task="text_to_image" if prompt else "text",
            can_split=not prompt,
        )


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Images to generate in several ways, with the reference implementation's sampling."""

    source: Path | Shape
    """A checkpoint, with captions as prompts; or a shape, with random prompts."""
    batch_size: int
    """Images generated at once."""
    codes: int
    """Codes of an image."""
    device: str
    guidance: float = 7.0
    greedy: bool = False
    """Choose the most likely code, to compare the candidates."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return torch.bfloat16 if self.device.startswith("cuda") else torch.float32

    @property
    def vocabulary(self) -> Vocabulary:
        """The layout of text tokens and image codes."""
        if isinstance(self.source, Path):
            return read_vocabulary(self.source)
        text = self.source.config.vocab_size - CODEBOOK
        return Vocabulary(
            text_size=text,
            image_offset=text,
            codebook_size=CODEBOOK,
            boi=3,
            eoi=4,
            unconditional=5,
        )

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling of all candidates."""
        reference = reference_sampling(self.vocabulary.codebook_size)
        return SamplingConfig(
            guidance=self.guidance,
            temperature=reference.temperature,
            top_k=reference.top_k,
            top_p=reference.top_p,
            greedy=self.greedy,
        )

    def language_model(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Build the stock model on the device, in evaluation mode."""
        if isinstance(self.source, Path):
            loaded: Any = load_language_model(self.source, dtype or self.dtype)
            return cast("PreTrainedModel", loaded.to(self.device).eval())
        return self.source.model(self.device, self.dtype).to(dtype or self.dtype).eval()

    def prompts(self) -> tuple[list[list[int]], list[int]]:
        """Return the prompt of each image, of different lengths, and the unconditional prompt."""
        if isinstance(self.source, Path):
            sequences = LiquidProcessor.from_pretrained(self.source).sequences
            captions = [_CAPTIONS[index % len(_CAPTIONS)] for index in range(self.batch_size)]
            prompts = [sequences.text_to_image_prompt(caption) for caption in captions]
            return prompts, sequences.unconditional_prompt()
        random, (shortest, longest) = generator(0), _PROMPT_TOKENS
        spread = longest - shortest + 1
        lengths = [shortest + 7 * index % spread for index in range(self.batch_size)]
        boi, bos = self.vocabulary.boi, 1
        ids = [torch.randint(6, 1000, (length,), generator=random).tolist() for length in lengths]
        return [[bos, *row, boi] for row in ids], [bos, self.vocabulary.unconditional, boi]

    def step_bytes(self) -> int:
        """Count the bytes that every decoding step must read.

        These are the blocks, the norms and the image rows of the head, once, in the dtype of the
        checkpoint; and the keys and values of all guided pairs, at half of the codes.
        """
        stored = self.dtype
        if isinstance(self.source, Path):
            model = empty_language_model(self.source)
            stored = AutoConfig.from_pretrained(self.source).dtype or stored
        else:
            model = self.source.model("meta", self.dtype)
        base: Any = model.base_model
        table = base.get_input_embeddings().weight
        blocks = sum(weight.numel() for weight in base.parameters()) - table.numel()
        head = self.vocabulary.codebook_size * table.shape[1]
        config: Any = model.config
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        prompts, unconditional = self.prompts()
        tokens = sum(map(len, prompts)) + self.batch_size * (len(unconditional) + self.codes)
        return int(stored.itemsize * (blocks + head) + self.dtype.itemsize * per_token * tokens)
