"""`liquid bench generate`: drawing, ours beside the release's loop and transformers' `generate`.

Contract: all sides of a comparison draw the same prompts with the same weights and settings, by
turns, guided. Figures without a prefix are those of the 135M shape; those of the default model
begin with `default_`, those of other shapes with their name. A part that can't be measured is
absent, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from liquidmm.bench.bandwidth import BUFFER, GPU_BUFFER, read_memory
from liquidmm.bench.generate_job import DrawJob
from liquidmm.bench.generate_ours import REQUESTS, answer_many, draw_ours
from liquidmm.bench.generate_release import draw_release, draw_static
from liquidmm.bench.job import Shape
from liquidmm.bench.report import Result, machine
from liquidmm.bench.sizes import SHAPES
from liquidmm.bench.worker import EndedError, Lap, Side, Worker, alternate, median_rate
from liquidmm.errors import ConfigError, suggest
from liquidmm.generate.backends import Quantization
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.runtime import resolve_device

PARTS = ("speed", "memory")
"""What can be measured."""
MODELS = ("default", *SHAPES)
"""What can be drawn with."""
PLAIN = "135m"
"""The model whose figures have no prefix."""
BEST = "int8"
"""The fastest weights on a CPU whose pictures are as faithful as those of float32."""
_ROUNDS = 5
_WARM = 3
_MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateBench:
    """What to measure."""

    checkpoint: Path = DEFAULT_MODEL
    """The checkpoint that is called the default model."""
    models: tuple[str, ...] = ("default", PLAIN)
    """Which of `MODELS` draw."""
    batches: tuple[int, ...] = (1, 8)
    """Pictures drawn at once."""
    codes: int = 64
    """Codes of a picture: all of the default model's, and the first of a shape's 1,024."""
    best: str = BEST
    """Weights of the fastest setting, on a CPU."""
    requests: int = 500
    """Requests that memory is watched over, in steps of `REQUESTS`."""
    seconds: float = 40.0
    """Time of each comparison, about."""
    parts: tuple[str, ...] = PARTS
    """Which of `PARTS` are measured."""
    device: str | None = None
    """Device; None takes the fastest."""

    def __post_init__(self) -> None:
        """Check the ranges and names."""
        if not self.seconds > 0:
            raise ConfigError(f"seconds: must be above 0 ({self.seconds}).")
        for name in ("codes", "requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1 ({getattr(self, name)}).")
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"batches: must be numbers of at least 1 ({self.batches}).")
        for option, given, known in (
            ("--only", self.parts, PARTS),
            ("--models", self.models, MODELS),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(f"{option}: '{name}' is unknown.{suggest(name, known)}")


def bench_generate(
    config: GenerateBench, progress: Callable[[str], None] = lambda _: None
) -> Result:
    """Measure.

    Args:
        config: What.
        progress: Told what is being done.

    Returns:
        The figures, and the reasons of those that are lacking.

    Raises:
        ConfigError: The device isn't here.
        CheckpointError: The checkpoint can't be loaded.
    """
    device = resolve_device(config.device)
    result = Result(bench="generate", settings=machine(device))
    result.settings |= {"codes_of_a_picture": config.codes, "seconds": config.seconds}
    if "speed" in config.parts:
        for model in config.models:
            for batch in config.batches:
                source = config.checkpoint if model == "default" else SHAPES[model]
                job = DrawJob(source=source, batch=batch, codes=config.codes, device=str(device))
                _Comparison(result, config, job, model).measure(progress)
    if "memory" in config.parts:
        _watch_memory(result, config, str(device), progress)
    return result


class _Comparison:
    """All ways of drawing with one model, some pictures at a time."""

    def __init__(self, result: Result, config: GenerateBench, job: DrawJob, model: str) -> None:
        self.result = result
        self.config = config
        self.job = job
        self.model = model
        self.gpu = job.device.startswith("cuda")
        self.number = "bfloat16" if self.gpu else "float32"
        rows = 2 * job.batch
        self.sides: dict[str, tuple[Side, tuple[object, ...]]] = {
            "ours": (draw_ours, (job, EngineConfig(slots=rows))),
            "release": (draw_release, (job,)),
            "static": (draw_static, (job,)),
        }
        weights = None if self.gpu else config.best
        quantize: Quantization | None = "int8" if weights == "int8" else None
        fast = EngineConfig(slots=rows, quantize=quantize, cuda_graphs=self.gpu)
        self.sides["best"] = (draw_ours, (job, fast))
        result.settings["best"] = {"weights": weights, "graphs": self.gpu}

    def measure(self, progress: Callable[[str], None]) -> None:
        """Draw by turns, and note the speeds and their ratios."""
        names = ", ".join(self.sides)
        progress(f"{self.model}, {self.job.batch} at once: {names} by turns")
        laps, ended = self._laps()
        rates = {
            side: median_rate(found, "codes") for side, found in laps.items() if side in self.sides
        }
        batch = f"b{self.job.batch}"
        for side in self.sides:
            name = f"{self._prefix}{side}_codes_per_second_{batch}"
            if side in rates:
                self.result.number(name, rates[side], "codes/s")
            else:
                self.result.lacks(name, ended[side])
        for mine, other, kind in (
            ("ours", "release", self.number),
            ("ours", "static", self.number),
            ("best", "release", "best"),
        ):
            name = f"{self._prefix}speedup_vs_{other}_{batch}_{kind}"
            if mine in rates and other in rates:
                self.result.number(name, rates[mine] / rates[other], "x")
            else:
                self.result.lacks(name, f"{mine}: {ended.get(mine, ended.get(other))}")
        self._share(laps, batch)

    def _laps(self) -> tuple[dict[str, list[Lap]], dict[str, str]]:
        size = GPU_BUFFER if self.gpu else BUFFER
        sides = {**self.sides, "memory": (read_memory, (size,))}
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(side, self.job.device, *arguments))
                for name, (side, arguments) in sides.items()
            }
            return alternate(workers, seconds=self.config.seconds, rounds=_ROUNDS, warm=_WARM)

    def _share(self, laps: dict[str, list[Lap]], batch: str) -> None:
        """Compare what our float side reads with how fast memory is."""
        if not {"ours", "memory"} <= laps.keys():
            return
        limit = median_rate(laps["memory"], "bytes")
        bytes_read = self.job.step_bytes()
        passes = median_rate(laps["ours"], "passes")
        self.result.number(f"{self._prefix}memory_bandwidth_{batch}", limit / 1e9, "GB/s")
        self.result.number(f"{self._prefix}step_bytes_{batch}", bytes_read / 1e6, "MB")
        self.result.number(
            f"{self._prefix}roofline_share_{batch}",
            100 * bytes_read * passes / limit,
            "%",
            "bytes that a step must read, times steps a second, divided by the memory's speed",
        )

    @property
    def _prefix(self) -> str:
        return "" if self.model == PLAIN else f"{self.model}_"


def _watch_memory(
    result: Result, config: GenerateBench, device: str, progress: Callable[[str], None]
) -> None:
    """Look at the process's memory while it answers many requests with a tiny model."""
    progress(f"memory over {config.requests} requests")
    shape = Shape(
        name="tiny",
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=128,
        vocabulary=1024 + 8192,
        tied=True,
        micro_rows=1,
        length=256,
    )
    job = DrawJob(source=shape, batch=8, codes=16, device=device)
    steps = max(2, config.requests // REQUESTS)
    try:
        with Worker(answer_many, device, job, EngineConfig(slots=16)) as worker:
            held = [worker.lap().counts["resident"] for _ in range(steps)]
    except EndedError as error:
        result.lacks("memory_growth", str(error))
        return
    if not all(held):
        result.lacks("memory_growth", "this system doesn't tell what a process holds")
        return
    result.number("memory_after_50_requests", held[0] / _MIB, "MiB")
    result.number(f"memory_after_{REQUESTS * len(held)}_requests", held[-1] / _MIB, "MiB")
    result.number("memory_growth", 100 * (held[-1] / held[0] - 1), "%")
    result.number("memory_growth_largest", 100 * (max(held) / held[0] - 1), "%")
