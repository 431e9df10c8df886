"""Image generation: our engine, the reference loop, and transformers' `generate`.

All candidates generate the same guided prompts with the same weights and sampling, in interleaved
rounds. Metrics without a prefix are those of the 135m shape; the prefix default_ is the checkpoint,
1b_ and 7b_ are larger shapes. The greedy codes of our candidates are scored by the float32 model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from transformers import PreTrainedModel

from _harness import (
    Candidate,
    CandidateError,
    Comparison,
    Pacer,
    Worker,
    compare,
    resident_memory,
    run_once,
)
from _reference import generate_reference, generate_static
from _results import SECONDS, Integers, Names, Result, machine, progress, script
from _workloads import SHAPES, GenerationTask, Shape, llama
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.generate.requests import ImageRequest, TextRequest, TokenRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.runtime import resolve_device

PARTS = ("speed", "memory")
MODELS = ("default", *SHAPES)
NO_PREFIX = "135m"
"""The model whose metrics have no prefix."""
BATCH_REQUESTS = 50
"""Requests between two measurements of the memory."""
_CHECKED_CODES = 64
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class _Settings:
    device: str
    seconds: float
    best: str

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def engines(self, batch_size: int) -> dict[str, EngineConfig]:
        """Return the engine of our two candidates: the default one and the fastest one."""
        slots = 2 * batch_size
        quantize: Any = None if self.on_gpu or self.best == "none" else self.best
        return {
            "ours": EngineConfig(slots=slots),
            "best": EngineConfig(slots=slots, quantize=quantize, cuda_graphs=self.on_gpu),
        }


@script("generate")
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_MODEL,
    show_default="the included model",
    help="Checkpoint of the model named default.",
)
@click.option("--models", type=Names(*MODELS), default="default,135m", help=", ".join(MODELS))
@click.option("--batches", type=Integers(), default="1,8", help="Images generated at once.")
@click.option("--codes", type=click.IntRange(1), default=64, help="Codes of an image.")
@click.option(
    "--best",
    type=click.Choice(["int8", "none"]),
    default="int8",
    help="Quantization of the fastest CPU setting.",
)
@click.option(
    "--requests", type=click.IntRange(1), default=500, help="Requests of the memory part."
)
@click.option("--seconds", type=SECONDS, default=40.0, help="Time of each comparison.")
@click.option("--only", type=Names(*PARTS), default=",".join(PARTS), help="Parts to run.")
@click.option("--device", show_default="the best available", help="cpu, cuda or mps.")
def main(
    result: Result,
    checkpoint: Path,
    models: tuple[str, ...],
    batches: tuple[int, ...],
    codes: int,
    requests: int,
    only: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare image generation with the reference loop and with transformers' generate."""
    device = resolve_device(options.pop("device"))
    settings = _Settings(device=str(device), **options)
    result.settings |= machine(device)
    best = settings.engines(1)["best"]
    result.settings |= {
        "codes_of_an_image": codes,
        "seconds": settings.seconds,
        "best": {"quantize": best.quantize, "cuda_graphs": best.cuda_graphs},
    }
    for model in models if "speed" in only else ():
        source = checkpoint if model == "default" else SHAPES[model]
        prefix = "" if model == NO_PREFIX else f"{model}_"
        check_codes(result, settings, source, min(codes, _CHECKED_CODES), prefix)
        for batch_size in batches:
            task = GenerationTask(
                source=source, batch_size=batch_size, codes=codes, device=settings.device
            )
            progress(f"{model}, batch size {batch_size}: interleaved rounds")
            measure_speed(result, settings, task, prefix)
    if "memory" in only:
        measure_memory(result, settings.device, requests)


def measure_speed(result: Result, settings: _Settings, task: GenerationTask, prefix: str) -> None:
    """Measure all candidates, and the memory bandwidth that limits them."""
    candidates: dict[str, Candidate] = {
        "ours": partial(generate_ours, task, settings.engines(task.batch_size)["ours"]),
        "release": partial(generate_reference, task),
        "static": partial(generate_static, task),
        "best": partial(generate_ours, task, settings.engines(task.batch_size)["best"]),
    }
    compared = compare(
        {**candidates, "memory": partial(read_memory, 2**32 if settings.on_gpu else 2**29)},
        settings.device,
        seconds=settings.seconds,
        rounds=5,
        warmup=3,
    )
    batch = f"b{task.batch_size}"
    rates = {name: compared.rate(name, "codes") for name in candidates}
    for name, rate in rates.items():
        figure = f"{prefix}{name}_codes_per_second_{batch}"
        result.add_or_skip(figure, rate, "codes/s", compared.failures.get(name, ""))
    dtype = "bfloat16" if settings.on_gpu else "float32"
    for mine, other, kind in (
        ("ours", "release", dtype),
        ("ours", "static", dtype),
        ("best", "release", "best"),
    ):
        result.add_ratio(f"{prefix}speedup_vs_{other}_{batch}_{kind}", rates[mine], rates[other])
    _add_roofline(result, compared, task.step_bytes(), prefix, batch)


def _add_roofline(
    result: Result, compared: Comparison, step_bytes: int, prefix: str, batch: str
) -> None:
    """Compare what our default candidate must read with the memory bandwidth."""
    bandwidth, steps = compared.rate("memory", "bytes"), compared.rate("ours", "steps")
    if bandwidth is None or steps is None:
        return
    result.add(f"{prefix}memory_bandwidth_{batch}", bandwidth / 1e9, "GB/s")
    result.add(f"{prefix}step_bytes_{batch}", step_bytes / 1e6, "MB")
    note = "bytes that a step must read, times steps per second, divided by the bandwidth"
    share = 100 * step_bytes * steps / bandwidth
    result.add(f"{prefix}roofline_share_{batch}", share, "%", note)


def read_memory(size: int, pacer: Pacer) -> None:
    """Read a buffer of ``size`` bytes per step; counts bytes."""
    buffer = torch.ones(size // 4, device=pacer.device)  # unwritten pages would all be the same one
    while pacer.wait():
        buffer.sum()
        pacer.count(bytes=size)


def engine_of(task: GenerationTask, model: PreTrainedModel, config: EngineConfig) -> Engine:
    """Build an engine for the model of a task."""
    _, unconditional = task.prompts()
    return Engine(model, task.vocabulary, unconditional=unconditional, stop=[], config=config)


def image_requests(task: GenerationTask, first_seed: int) -> list[ImageRequest]:
    """Return the requests of one batch of images."""
    prompts, _ = task.prompts()
    return [
        ImageRequest(
            prompt=tuple(prompt),
            grid=(1, task.codes),
            sampling=task.sampling,
            seed=first_seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]


def generate_ours(task: GenerationTask, config: EngineConfig, pacer: Pacer) -> None:
    """Generate images with our engine, all of a batch together; counts codes and steps."""
    engine = engine_of(task, task.language_model(), config)
    seed, before = 0, 0
    handles = [engine.submit(request) for request in image_requests(task, seed)]
    while pacer.wait():
        if all(handle.done for handle in handles):
            seed, before = seed + task.batch_size, 0
            handles = [engine.submit(request) for request in image_requests(task, seed)]
        engine.step()
        codes = sum(handle.sampled for handle in handles)
        pacer.count(codes=codes - before, steps=1)
        before = codes


def check_codes(
    result: Result, settings: _Settings, source: Path | Shape, codes: int, prefix: str
) -> None:
    """Score the greedy codes of our candidates with the float32 model."""
    task = GenerationTask(
        source=source, batch_size=2, codes=codes, device=settings.device, greedy=True
    )
    for name, config in settings.engines(task.batch_size).items():
        figures = f"{prefix}{name}_code_agreement", f"{prefix}{name}_score_gap"
        progress(f"{prefix}{name}: comparing greedy codes with float32")
        try:
            counts = run_once(partial(score_codes, task, config), settings.device).counts
        except CandidateError as error:
            for figure in figures:
                result.skip(figure, str(error))
            continue
        note = "greedy codes that float32 scores highest, after the same prefix"
        result.add(figures[0], 100 * counts["agreement"], "%", note)
        note = "mean of (best score - score of the code) / standard deviation of the scores"
        result.add(figures[1], counts["gap"], "", note)


def score_codes(task: GenerationTask, config: EngineConfig, pacer: Pacer) -> None:
    """Generate greedy codes and score them with the stock float32 model."""
    while pacer.wait():
        engine = engine_of(task, task.language_model(), config)
        generated = engine.generate_codes(image_requests(task, 0))
        del engine
        model, (prompts, unconditional) = task.language_model(torch.float32), task.prompts()
        agreement, gap = [], []
        for prompt, grid in zip(prompts, generated, strict=True):
            codes = grid.flatten().to(task.device)
            scores = _guided_scores(model, task, (prompt, unconditional), codes)
            best, chosen = scores.max(dim=-1), scores.gather(-1, codes[:, None])[:, 0]
            agreement.append((best.indices == codes).float().mean())
            gap.append(((best.values - chosen) / scores.std(dim=-1)).mean())
        pacer.count(
            agreement=float(torch.stack(agreement).mean()), gap=float(torch.stack(gap).mean())
        )


@torch.inference_mode()
def _guided_scores(
    model: Any, task: GenerationTask, prompts: tuple[list[int], list[int]], codes: torch.Tensor
) -> torch.Tensor:
    """Return the guided scores before each code, (codes, K)."""
    image = task.vocabulary.image_slice
    conditional, unconditional = (
        model(
            torch.cat([torch.tensor(prompt, device=task.device), codes[:-1] + image.start])[None]
        ).logits[0, len(prompt) - 1 :, image]
        for prompt in prompts
    )
    guided: torch.Tensor = unconditional + task.guidance * (conditional - unconditional)
    return guided


def measure_memory(result: Result, device: str, requests: int) -> None:
    """Measure the memory of a process that answers many requests with a tiny model."""
    progress(f"memory over {requests} requests")
    config = llama(
        64,
        2,
        4,
        2,
        intermediate_size=128,
        vocab_size=1024 + 8192,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    shape = Shape(name="tiny", config=config, micro_batch_size=1, seq_len=256)
    task = GenerationTask(source=shape, batch_size=8, codes=16, device=device)
    steps = max(2, requests // BATCH_REQUESTS)
    try:
        with Worker(partial(answer_requests, task, EngineConfig(slots=16)), device) as worker:
            resident = [worker.run().counts["resident"] for _ in range(steps)]
    except CandidateError as error:
        result.skip("memory_growth", str(error))
        return
    if not all(resident):
        result.skip("memory_growth", "this system does not report the memory of a process")
        return
    first = resident[0]
    result.add(f"memory_after_{BATCH_REQUESTS}_requests", first / _MIB, "MiB")
    result.add(f"memory_after_{BATCH_REQUESTS * steps}_requests", resident[-1] / _MIB, "MiB")
    result.add("memory_growth", 100 * (resident[-1] / first - 1), "%")
    result.add("memory_growth_largest", 100 * (max(resident) / first - 1), "%")


def answer_requests(task: GenerationTask, config: EngineConfig, pacer: Pacer) -> None:
    """Answer `BATCH_REQUESTS` requests per step; counts the resident memory afterwards."""
    engine = engine_of(task, task.language_model(), config)
    requests = _mixed_requests(task)
    while pacer.wait():
        for _ in engine.run([next(requests) for _ in range(BATCH_REQUESTS)]):
            pass
        gc.collect()
        pacer.count(resident=resident_memory() or 0)


def _mixed_requests(task: GenerationTask) -> Iterator[TokenRequest]:
    """Yield images, guided or not, and texts with and without images, endlessly."""
    prompts, _ = task.prompts()
    unguided = SamplingConfig(guidance=1.0, top_k=0, top_p=1.0)
    number = 0
    while True:
        prompt = tuple(prompts[number % len(prompts)])
        grid = (1 + number % 5, 4)
        if number % 2:
            sampling = task.sampling if number % 4 == 1 else unguided
            yield ImageRequest(prompt=prompt, grid=grid, sampling=sampling, seed=number)
        else:
            yield TextRequest(
                prompt=prompt[: 1 + number % len(prompt)],
                max_tokens=1 + number * 7 % 40,
                sampling=unguided,
                image_sampling=task.sampling,
                seed=number,
                grid=grid if number % 4 else None,
            )
        number += 1


if __name__ == "__main__":
    main()
