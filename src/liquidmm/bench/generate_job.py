"""What all sides of a comparison of drawing draw: weights, prompts and settings.

Contract: a `DrawJob` is plain values, so that each side makes the same model and the same prompts
in its own process. The source is a checkpoint with captions as prompts, or a shape with random
weights and random ids, whose speed is that of a trained model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from liquidmm.bench.job import Shape
from liquidmm.generate.sampling import SamplingConfig, reference_sampling
from liquidmm.model.checkpoint import empty_language_model, load_language_model
from liquidmm.model.processor import LiquidProcessor, read_vocabulary
from liquidmm.runtime import generator
from liquidmm.vocabulary import Vocabulary

_CAPTIONS = (
    "a red apple, noto style",
    "two green fish",
    "a small house with a yellow roof and a tree, twemoji style",
    "an octopus, fluent 3d style",
    "a star",
    "a dog beside a bicycle, openmoji style",
    "a cup of coffee, fluent flat style",
    "the moon above a mountain",
)
_CODEBOOK = 8192
_SHORTEST, _LONGEST = 24, 40


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawJob:
    """Pictures to draw in several ways."""

    source: Path | Shape
    """Where weights and prompts come from."""
    batch: int
    """Pictures drawn at once."""
    codes: int
    """Codes of a picture."""
    device: str
    """Where they are drawn."""
    guidance: float = 7.0
    """Guidance (release)."""
    own_sampling: bool = False
    """Whether a checkpoint's own settings are taken in place of the release's."""
    greedy: bool = False
    """Whether the likeliest codes are taken, as tests do to compare the sides."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return torch.bfloat16 if self.device.startswith("cuda") else torch.float32

    @property
    def vocabulary(self) -> Vocabulary:
        """Where text and codes lie."""
        if isinstance(self.source, Path):
            return read_vocabulary(self.source)
        text = self.source.vocabulary - _CODEBOOK
        return Vocabulary(
            text_size=text,
            image_offset=text,
            codebook_size=_CODEBOOK,
            boi=3,
            eoi=4,
            unconditional=5,
        )

    @property
    def sampling(self) -> SamplingConfig:
        """Settings of all sides."""
        if self.own_sampling and isinstance(self.source, Path):
            own = LiquidProcessor.from_pretrained(self.source).sampling
            if own is not None:
                return SamplingConfig(**own)
        plain = reference_sampling(self.vocabulary.codebook_size)
        return SamplingConfig(
            guidance=self.guidance,
            temperature=plain.temperature,
            top_k=plain.top_k,
            top_p=plain.top_p,
            greedy=self.greedy,
        )

    def language_model(self) -> PreTrainedModel:
        """Make the stock model, in eval mode on the device."""
        if isinstance(self.source, Path):
            model: Any = load_language_model(self.source, self.dtype)
            return cast("PreTrainedModel", model.to(self.device).eval())
        with torch.device(self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                self.source.config(), dtype=self.dtype
            )
        return cast("PreTrainedModel", model.eval())

    def prompts(self) -> tuple[list[list[int]], list[int]]:
        """Give the prompt of each picture, of different lengths, and the unconditional one."""
        if isinstance(self.source, Path):
            sequences = LiquidProcessor.from_pretrained(self.source).sequences
            captions = [_CAPTIONS[place % len(_CAPTIONS)] for place in range(self.batch)]
            prompts = [sequences.text_to_image_prompt(caption) for caption in captions]
            return prompts, sequences.unconditional_prompt()
        random = generator(0)
        spread = _LONGEST - _SHORTEST + 1
        lengths = [_SHORTEST + 7 * place % spread for place in range(self.batch)]
        boi, bos = self.vocabulary.boi, 1
        ids = [torch.randint(6, 1000, (length,), generator=random).tolist() for length in lengths]
        return [[bos, *row, boi] for row in ids], [bos, self.vocabulary.unconditional, boi]

    def step_bytes(self) -> int:
        """Count what has to be read for each step, whoever draws.

        Returns:
            Bytes of the blocks, of the norms and of the head's image slice, once, in the type that
            a checkpoint stores; and of the keys and values of all rows of guided pairs, at half of
            the codes.
        """
        stored = self.dtype
        if isinstance(self.source, Path):
            model = empty_language_model(self.source)
            stored = AutoConfig.from_pretrained(self.source).dtype or stored
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    self.source.config()
                )
        base: Any = model.base_model
        table = base.get_input_embeddings().weight
        blocks = sum(weight.numel() for weight in base.parameters()) - table.numel()
        head = self.vocabulary.codebook_size * table.shape[1]
        config: Any = model.config
        cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        prompts, unconditional = self.prompts()
        held = sum(map(len, prompts)) + self.batch * (len(unconditional) + self.codes)
        return int(stored.itemsize * (blocks + head) + self.dtype.itemsize * cached * held)


def left_padded(prompts: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Line prompts up at their ends.

    Returns:
        Ids, (B, T), and the mask of what is no padding, (B, T), int64.
    """
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
