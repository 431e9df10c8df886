"""The alternatives: the release's loop, and transformers' `generate` with a static cache.

Contract: both are written with transformers' public interface alone, draw guided pairs whose halves
share every id, and use the same settings as ours; with `greedy` they draw the same codes. The loop
does what the published release does at each step: it runs the whole head over a cache that grows by
concatenation, and sorts the whole vocabulary. `generate` runs its own loop; what is particular to
Liquid is in a logits processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicCache

from liquidmm.bench.generate_job import DrawJob, left_padded
from liquidmm.bench.worker import Pacer
from liquidmm.generate.sampling import SamplingConfig


@torch.inference_mode()
def release_loop(model: PreTrainedModel, job: DrawJob) -> Iterator[Tensor]:
    """Draw a batch of pictures the release's way.

    Args:
        model: What `DrawJob.language_model` made.
        job: What to draw.

    Yields:
        A code of each picture, (B,), int64, as often as a picture has codes.
    """
    prompts, unconditional = job.prompts()
    ids, mask = left_padded([*prompts, *[unconditional] * job.batch], job.device)
    cache = DynamicCache(config=model.config)
    part, sampling = job.vocabulary.image_slice, job.sampling
    feed = ids
    for _ in range(job.codes):
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        output = model(
            input_ids=feed,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        conditional, unguided = output.logits[:, -1].float().chunk(2)
        logits = unguided + sampling.guidance * (conditional - unguided)
        logits[:, : part.start] = -torch.inf
        drawn = _sorted_draw(logits, sampling)
        feed = drawn.repeat(2)[:, None]
        ids = torch.cat([ids, feed], dim=1)
        mask = torch.cat([mask, torch.ones_like(feed)], dim=1)
        yield drawn - part.start


def _sorted_draw(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draw one id for each row by sorting all of them."""
    if sampling.greedy:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    lowest = torch.topk(logits, sampling.top_k).values[:, -1:]
    logits = logits.masked_fill(logits < lowest, -torch.inf)
    ordered, places = torch.sort(logits, descending=True)
    chances = ordered.softmax(dim=-1)
    dropped = chances.cumsum(dim=-1) - chances >= sampling.top_p
    logits = logits.masked_fill(dropped.scatter(1, places, dropped), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)[:, 0]


class GuidedPairs(LogitsProcessor):
    """Draws for pairs, and lets both halves take what was drawn."""

    def __init__(self, job: DrawJob, on_step: Callable[[Tensor], None]) -> None:
        """Keep the settings.

        Args:
            job: What to draw.
            on_step: Told the codes of each step, (B,).
        """
        sampling = job.sampling
        self._part = job.vocabulary.image_slice
        self._sampling = sampling
        self._on_step = on_step
        self._filters = LogitsProcessorList(
            [
                TemperatureLogitsWarper(sampling.temperature),
                TopKLogitsWarper(sampling.top_k),
                TopPLogitsWarper(sampling.top_p),
            ]
        )

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores, (2 B, V), of which the drawn id is the only one."""
        conditional, unguided = scores[:, self._part].float().chunk(2)
        logits = unguided + self._sampling.guidance * (conditional - unguided)
        if self._sampling.greedy:
            codes = logits.argmax(dim=-1)
        else:
            chances = self._filters(input_ids, logits).softmax(dim=-1)
            codes = torch.multinomial(chances, num_samples=1)[:, 0]
        self._on_step(codes)
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, (codes + self._part.start).repeat(2)[:, None], 0.0)


def static_generate(
    model: PreTrainedModel, job: DrawJob, on_step: Callable[[Tensor], None]
) -> None:
    """Draw a batch of pictures with `generate` and its static cache.

    Args:
        model: What `DrawJob.language_model` made.
        job: What to draw.
        on_step: Told the codes of each step, (B,).
    """
    prompts, unconditional = job.prompts()
    ids, mask = left_padded([*prompts, *[unconditional] * job.batch], job.device)
    cast("Any", model).generate(
        ids,
        attention_mask=mask,
        max_new_tokens=job.codes,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="static",
        logits_processor=LogitsProcessorList([GuidedPairs(job, on_step)]),
    )


def draw_release(pacer: Pacer, job: DrawJob) -> None:
    """Draw pictures the release's way, a step when the pacer says go; counts codes."""
    model = job.language_model()
    steps = (codes for _ in iter(int, 1) for codes in release_loop(model, job))
    while pacer.go():
        next(steps)
        pacer.count(codes=job.batch)


def draw_static(pacer: Pacer, job: DrawJob) -> None:
    """Draw pictures with `generate`, a step when the pacer says go; counts codes."""
    model = job.language_model()

    def on_step(_: Tensor) -> None:
        pacer.count(codes=job.batch)
        if not pacer.go():
            raise _OverError

    if pacer.go():
        try:
            while True:
                static_generate(model, job, on_step)
        except _OverError:
            return


class _OverError(Exception):
    """No more steps are wanted."""
