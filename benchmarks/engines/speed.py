"""Text generation of our engine and llama.cpp: the same weights, one sequence, greedy.

    LLAMA_PYTHON=... python benchmarks/engines/speed.py OUT CHECKPOINT

Exports the checkpoint to OUT (float32 and q8_0, unless they exist) and prints tokens per second,
the median over interleaved rounds. The candidates are our float32 and int8, and llama.cpp with each
file. All of them use two threads.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from liquidmm.export.export import export_checkpoint
from liquidmm.generate.engine import Engine, EngineConfig
from liquidmm.generate.outputs import TextStep
from liquidmm.generate.requests import TextRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.model.checkpoint import load_language_model
from liquidmm.model.processor import LiquidProcessor

THREADS = 2
ROUNDS = 7
TOKENS = 64
PROMPT = tuple(range(100, 132))
GREEDY_SAMPLING = SamplingConfig(greedy=True)


def our_seconds(engine: Engine) -> float:
    """Time all tokens but the first, which includes the prompt."""
    request = TextRequest(
        prompt=PROMPT,
        max_tokens=TOKENS + 1,
        sampling=GREEDY_SAMPLING,
        image_sampling=GREEDY_SAMPLING,
    )
    events = engine.run([request])
    times = [time.perf_counter() for _, event in events if isinstance(event, TextStep)]
    assert len(times) == TOKENS + 1
    return times[-1] - times[0]


class Llama:
    """llama.cpp in its own process."""

    def __init__(self, file: Path) -> None:
        worker = Path(__file__).with_name("speed_llama.py")
        command = [os.environ["LLAMA_PYTHON"], str(worker), str(file), str(THREADS)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self) -> float:
        """Time one generation."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, (TOKENS, *PROMPT))) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def main(out: Path, checkpoint: Path) -> None:
    """Measure and print."""
    torch.set_num_threads(THREADS)
    files = {dtype: out / dtype for dtype in ("float32", "q8_0")}
    for dtype, folder in files.items():
        if not folder.exists():
            export_checkpoint(checkpoint, folder, "gguf", dtype)
    model = load_language_model(checkpoint, torch.float32).eval()
    processor = LiquidProcessor.from_pretrained(checkpoint)
    engines = {
        weights: Engine(
            model,
            processor.vocabulary,
            unconditional=processor.sequences.unconditional_prompt(),
            stop=[],
            config=EngineConfig(slots=2, quantize="int8" if weights == "int8" else None),
        )
        for weights in ("float32", "int8")
    }
    llamas = {dtype: Llama(folder / "model.gguf") for dtype, folder in files.items()}
    candidates: dict[str, Callable[[], float]] = {}
    for weights, engine in engines.items():
        candidates[f"ours, {weights}"] = partial(our_seconds, engine)
    for dtype, llama in llamas.items():
        candidates[f"llama.cpp, {dtype}"] = llama.seconds
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS + 1):
        for name, candidate in candidates.items():
            seconds[name].append(candidate())
    for llama in llamas.values():
        llama.close()
    for name, found in seconds.items():
        speed = TOKENS / statistics.median(found[1:])
        sys.stdout.write(f"{name:20} {speed:8.1f} tokens/s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
