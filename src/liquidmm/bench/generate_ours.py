"""Our side: the engine on the same model and prompts; and the engine under many requests.

Contract: pictures of a batch begin together, and the next ones when they are finished, as on the
other sides. What is counted is codes that were drawn, and what the process holds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

from transformers import PreTrainedModel

from liquidmm.bench.generate_job import DrawJob
from liquidmm.bench.memory import resident
from liquidmm.bench.worker import Pacer
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.requests import ImageRequest, TextRequest, TokenRequest
from liquidmm.generate.sampling import SamplingConfig

REQUESTS = 50
"""Requests between two looks at the memory."""


def engine_of(job: DrawJob, model: PreTrainedModel, config: EngineConfig) -> Engine:
    """Make an engine for a job's model."""
    _, unconditional = job.prompts()
    return Engine(model, job.vocabulary, unconditional=unconditional, stop=[], config=config)


def picture_requests(job: DrawJob, first_seed: int) -> list[ImageRequest]:
    """Ask for the pictures of a batch."""
    prompts, _ = job.prompts()
    return [
        ImageRequest(
            prompt=tuple(prompt),
            grid=(1, job.codes),
            sampling=job.sampling,
            seed=first_seed + place,
        )
        for place, prompt in enumerate(prompts)
    ]


def draw_ours(pacer: Pacer, job: DrawJob, config: EngineConfig) -> None:
    """Draw pictures with the engine, a step when the pacer says go; counts codes and passes.

    Args:
        pacer: Says when.
        job: What to draw.
        config: How the model is run.
    """
    engine = engine_of(job, job.language_model(), config)
    seed, before = 0, 0
    answers = [engine.submit(request) for request in picture_requests(job, seed)]
    while pacer.go():
        if all(answer.done for answer in answers):
            seed, before = seed + job.batch, 0
            answers = [engine.submit(request) for request in picture_requests(job, seed)]
        engine.step()
        drawn = sum(answer.sampled for answer in answers)
        pacer.count(codes=drawn - before, passes=1)
        before = drawn


def answer_many(pacer: Pacer, job: DrawJob, config: EngineConfig) -> None:
    """Answer requests of all kinds and lengths; a step is `REQUESTS` of them.

    Args:
        pacer: Says when; told the bytes that the process holds after each step.
        job: Whose model and prompts.
        config: How the model is run.
    """
    engine = engine_of(job, job.language_model(), config)
    requests = _mixture(job)
    while pacer.go():
        for _ in engine.run([next(requests) for _ in range(REQUESTS)]):
            pass
        gc.collect()
        pacer.count(resident=resident() or 0)


def _mixture(job: DrawJob) -> Iterator[TokenRequest]:
    """Yield pictures, guided or not, and texts with and without pictures, endlessly."""
    prompts, _ = job.prompts()
    plain = SamplingConfig(guidance=1.0, top_k=0, top_p=1.0)
    number = 0
    while True:
        prompt = tuple(prompts[number % len(prompts)])
        height = 1 + number % 5
        if number % 2:
            sampling = job.sampling if number % 4 == 1 else plain
            yield ImageRequest(prompt=prompt, grid=(height, 4), sampling=sampling, seed=number)
        else:
            yield TextRequest(
                prompt=prompt[: 1 + number % len(prompt)],
                max_tokens=1 + number * 7 % 40,
                sampling=plain,
                image_sampling=job.sampling,
                seed=number,
                grid=(height, 4) if number % 4 else None,
            )
        number += 1
