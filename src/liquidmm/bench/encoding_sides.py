"""The two sides that turn the same pictures into codes.

Contract: both open, prepare and encode the files of a `Task`, in its order and again from the
beginning, and count pictures. The release's way is one picture at a time in float32, everything in
one process with all cores. Ours is `liquid encode` without its start: parts of the source through
`PartEncoder` in as many processes as it would take, each part written as a shard.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from liquidmm.bench.worker import Pacer
from liquidmm.data.readers import Chunk, SourceConfig, read_chunk
from liquidmm.data.shard_file import write_shard
from liquidmm.encode import EncodeConfig, Preparation, TokenizerFile
from liquidmm.encode.part import PartEncoder, Seen
from liquidmm.image_tokenizer.images import center_crop, open_image, to_tensor
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.runtime import tune_cpu_allocator


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is encoded, and how our side does it."""

    tokenizer: TokenizerFile
    """The image tokenizer; the precision is our side's."""
    source: SourceConfig
    """The pictures and their captions."""
    parts: tuple[Chunk, ...]
    """The same in parts, which make a shard each."""
    files: tuple[Path, ...]
    """The pictures alone."""
    size: int
    """Side of the prepared picture in pixels."""
    out: Path
    """Where our side writes shards."""
    workers: int
    """Processes of our side."""
    decoders: int
    """Threads that open pictures in each."""


def release_side(pacer: Pacer, task: Task) -> None:
    """Encode one picture a step as the release does; counts pictures."""
    tokenizer = task.tokenizer()
    encode = stock_encoder(tokenizer) or tokenizer.model.encode
    with torch.no_grad():
        for file in cycle(task.files):
            if not pacer.go():
                return
            image = center_crop(open_image(file), task.size, task.size)
            encode(to_tensor(image)[None].to(pacer.device)).flatten().tolist()
            pacer.count(pictures=1)


def our_side(pacer: Pacer, task: Task) -> None:
    """Encode as many parts a step as there are workers; counts pictures."""
    with ExitStack() as stack:
        run: Callable[[list[int]], list[int]]
        if task.workers == 1:
            run = partial(_each, task)
        else:
            context: Any = get_context("forkserver")
            pool = stack.enter_context(ProcessPoolExecutor(task.workers, context))
            run = partial(_together, pool, task)
        for step in count():
            if not pacer.go():
                return
            first = step * task.workers
            pacer.count(pictures=sum(run(list(range(first, first + task.workers)))))


def stock_encoder(tokenizer: VQGANTokenizer) -> Callable[[Tensor], Tensor] | None:
    """Give transformers' own encoder with the tokenizer's weights.

    Args:
        tokenizer: Whose weights are copied, to its device.

    Returns:
        Maps pixels to codes; None where transformers can't build this shape: it normalises in 32
        groups always.
    """
    config = tokenizer.model.config
    if config.norm_groups != 32 or config.base_channels % 32:
        return None
    shape = ChameleonVQVAEConfig(
        embed_dim=config.code_dim,
        num_embeddings=config.codebook_size,
        resolution=config.resolution,
        in_channels=config.in_channels,
        base_channels=config.base_channels,
        channel_multiplier=list(config.channel_multipliers),
        num_res_blocks=config.num_res_blocks,
        latent_channels=config.latent_channels,
        attn_resolutions=list(config.attention_resolutions) or None,
    )
    model: Any = ChameleonVQVAE(shape)
    state = tokenizer.model.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.to(tokenizer.device).eval()
    return lambda pixels: model.encode(pixels).image_tokens


def _each(task: Task, numbers: list[int]) -> list[int]:
    return [_encode(task, number) for number in numbers]


def _together(pool: ProcessPoolExecutor, task: Task, numbers: list[int]) -> list[int]:
    return list(pool.map(partial(_encode, task), numbers))


def _encode(task: Task, number: int) -> int:
    """Encode a part and write its shard; returns the number of pictures."""
    tokenizer, encoder = _opened(task)
    part = task.parts[number % len(task.parts)]
    found = read_chunk(task.source, part)
    rows, refusals = encoder.encode(found, task.source.paths[0], _say_nothing)
    write_shard(task.out, number, part.name, rows, refusals, tokenizer.codebook_size)
    return len(rows)


@cache
def _opened(task: Task) -> tuple[VQGANTokenizer, PartEncoder]:
    """Make a process ready; its threads end with it."""
    tune_cpu_allocator()
    torch.set_num_threads(1)
    tokenizer = task.tokenizer()
    config = EncodeConfig(size=task.size)
    preparation = Preparation(config, tokenizer.downsample_factor)
    return tokenizer, PartEncoder(tokenizer, preparation, config.batch_size, task.decoders)


def _say_nothing(seen: Seen) -> None:
    """Progress is the benchmark's."""
