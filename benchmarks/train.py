"""Training: packed sequences and our loss against padded batches and full logits.

The baseline works as the reference implementation: transformers.Trainer on batches padded to their
longest sequence. Both train the same weights on the same documents with AdamW, in interleaved
rounds; a step has as many tokens as whole batches allow, and includes the loading of its data.

Parts: efficiency and speed (the checkpoint on the run file's shards), loss (a large vocabulary),
sizes (shapes with random weights on a GPU). Before a GPU is timed, the fast path (bfloat16,
compiled blocks, flex_attention) must agree with float32 and sdpa.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from _harness import CandidateError, Comparison, compare, run_once
from _loss import LossBenchmark, LossSizes
from _packed import compare_paths, count, train_packed
from _reference import padded_efficiency, train_padded
from _results import SECONDS, Names, Result, machine, progress, script
from _workloads import SHAPES, Shape, TrainingTask
from liquidmm.config import load_run
from liquidmm.generate.liquid import DEFAULT_MODEL
from liquidmm.runtime import resolve_device
from liquidmm.train.config import LoopConfig, TrainConfig
from liquidmm.train.flops import flops_per_token, mfu, peak_flops
from liquidmm.train.model import ModelConfig
from liquidmm.train.optim import OptimConfig

PARTS = ("efficiency", "speed", "loss", "sizes")
LOSS_TOLERANCE = 0.02
"""Largest difference of the loss in nats."""
STATE_TOLERANCE = 0.05
"""Largest difference of the last hidden states, relative to their norm; documents that can see each
other differ by far more."""
GRADIENT_TOLERANCE = 0.05
"""Largest relative difference of the gradient norm."""
FAST = ModelConfig(
    attn_implementation="flex_attention", compile=True, activation_checkpointing=True
)
"""How our candidate computes a shape on a GPU."""
FAST_CHECKPOINT = replace(FAST, activation_checkpointing=False)
"""How our candidate computes the small checkpoint on a GPU."""
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_ROUNDS = 6
_CHECKED_SEQUENCES = 2
_GIB = 2**30


@script("train")
@click.option(
    "--data", type=_FOLDER, default=Path("data/shards"), help="Folder with the run's shards."
)
@click.option(
    "--run",
    type=_FILE,
    default=Path("recipes/icons/answers.toml"),
    help="Run file with the data sources and the sequence length.",
)
@click.option(
    "--checkpoint",
    type=_FOLDER,
    default=DEFAULT_MODEL,
    show_default="the included model",
    help="Checkpoint to train.",
)
@click.option("--seconds", type=SECONDS, default=120.0, help="Time of each comparison.")
@click.option("--device", show_default="the best available", help="cpu, cuda or mps.")
@click.option(
    "--sizes", type=Names(*SHAPES), default=(), help=f"Shapes to train: {','.join(SHAPES)}."
)
@click.option("--only", type=Names(*PARTS), default=",".join(PARTS), help="Parts to run.")
@click.option("--length", type=click.IntRange(0), default=0, help="Sequence length; 0: the run's.")
@click.option("--steps", type=click.IntRange(1), default=64, help="Steps of the efficiency part.")
@click.option("--sequences", type=click.IntRange(1), default=16, help="Size of a padded batch.")
@click.option(
    "--tokens", type=click.IntRange(2), default=8192, help="Labels of the loss, for memory."
)
@click.option("--timed-tokens", type=click.IntRange(2), default=1024, help="The same, for time.")
@click.option(
    "--vocabulary", type=click.IntRange(2), default=264_192, help="Rows of the loss's head."
)
@click.option("--hidden", type=click.IntRange(1), default=512, help="Width of the loss's head.")
def main(
    result: Result,
    checkpoint: Path,
    seconds: float,
    device: str | None,
    sizes: tuple[str, ...],
    only: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare training with transformers.Trainer on padded batches."""
    resolved = resolve_device(device)
    result.settings |= machine(resolved)
    benchmark = TrainingBenchmark(result, options["sequences"], seconds)
    if {"efficiency", "speed"} & set(only):
        run_file = options["run"]
        task = checkpoint_task(
            run_file, options["data"], checkpoint, options["length"], str(resolved)
        )
        is_default = checkpoint == DEFAULT_MODEL
        result.settings["run"] = str(run_file)
        result.settings["checkpoint"] = "default model" if is_default else str(checkpoint)
        benchmark.measure_checkpoint(task, options["steps"], timed="speed" in only)
    if "loss" in only:
        timed = min(options["timed_tokens"], options["tokens"])
        names = ("tokens", "vocabulary", "hidden")
        loss_sizes = LossSizes(**{name: options[name] for name in names}, timed_tokens=timed)
        loss = LossBenchmark(result=result, sizes=loss_sizes, device=str(resolved), seconds=seconds)
        loss.measure_time()
        loss.measure_memory()
    for name, shape in SHAPES.items() if "sizes" in only else ():
        if name not in sizes:
            result.skip(f"{name}_tokens_per_second", f"not requested: --sizes {name}")
        elif resolved.type != "cuda":
            result.skip(f"{name}_tokens_per_second", f"needs a CUDA device, not {resolved}")
        else:
            benchmark.measure_shape(shape_task(shape, str(resolved)))


def checkpoint_task(
    run_file: Path, data: Path, checkpoint: Path, length: int, device: str
) -> TrainingTask:
    """Return the training of a checkpoint on the data of a run file.

    It uses AdamW with a small constant rate; on a GPU bfloat16 and our fast path, else float32.

    Args:
        run_file: Run file with the mixture and the batch sizes.
        data: Folder that contains the run's folders of shards.
        checkpoint: Checkpoint to train.
        length: Sequence length; 0 keeps the run's. A step has as many tokens as before.
        device: Where it is trained.
    """
    run = load_run(TrainConfig, run_file)
    on_gpu = device.startswith("cuda")
    loop = LoopConfig(
        steps=1,
        global_batch_size=run.train.global_batch_size,
        micro_batch_size=run.train.micro_batch_size,
        precision="bfloat16" if on_gpu else "float32",
    )
    sources = tuple(replace(source, path=data / source.path.name) for source in run.data.sources)
    config = replace(run.data, sources=sources, eval=())
    if length:
        size = max(1, run.train.global_batch_size * config.seq_len // length)
        loop = replace(loop, global_batch_size=size, micro_batch_size=0)
        longest = min(config.packing.document_limit, length)
        config = replace(config, seq_len=length, max_document_tokens=longest)
    optim = OptimConfig(lr=1e-5)
    run = replace(run, checkpoint=checkpoint, data=config, train=loop, optim=optim)
    model = FAST_CHECKPOINT if on_gpu else ModelConfig()
    return TrainingTask(source=run, loop=loop, model=model, optim=optim, device=device)


def shape_task(shape: Shape, device: str, model: ModelConfig = FAST) -> TrainingTask:
    """Return the training of a shape in bfloat16."""
    loop = LoopConfig(
        steps=1,
        global_batch_size=shape.global_batch_size,
        micro_batch_size=shape.micro_batch_size,
        precision="bfloat16",
    )
    return TrainingTask(source=shape, loop=loop, model=model, optim=OptimConfig(), device=device)


@dataclass(frozen=True)
class TrainingBenchmark:
    """The measurements of training, into one result."""

    result: Result
    padded_batch_size: int
    seconds: float
    loss_tolerance: float = LOSS_TOLERANCE

    def measure_checkpoint(self, task: TrainingTask, steps: int, *, timed: bool) -> None:
        """Measure the efficiency of packing, and the speed against padded batches."""
        progress(f"packing {steps * task.loop.global_batch_size:,} sequences")
        accumulation = self.measure_efficiency(task, steps)
        if not timed:
            return
        reason = self.check_fast_path(task, "") if task.model == FAST_CHECKPOINT else None
        if reason is None:
            self.compare_with_padded(task, accumulation)
        else:
            self.result.skip("useful_tokens_speedup_vs_padded", reason)

    def measure_shape(self, task: TrainingTask) -> None:
        """Check and time a shape; the smallest one also against padded batches."""
        assert isinstance(task.source, Shape)
        name = task.source.name
        reason = self.check_fast_path(task, f"{name}_")
        if reason is None:
            progress(f"{name}: training")
            compared = compare(
                {name: partial(train_packed, task)},
                task.device,
                seconds=self.seconds,
                rounds=_ROUNDS,
                warmup=3,
            )
            reason = compared.failures.get(name)
        if reason is not None:
            self.result.skip(f"{name}_tokens_per_second", reason)
            return
        self._add_shape(task, task.source, compared)
        if name == "135m":
            self.compare_with_padded(task, self.measure_efficiency(task, 8, "135m_"), "135m_")

    def measure_efficiency(self, task: TrainingTask, steps: int, prefix: str = "") -> int:
        """Measure the share of non-padding tokens, packed and padded.

        Returns:
            Padded batches in an optimizer step of about as many tokens, at least 1.
        """
        stream = task.open_stream()
        sequences = [one for _ in range(steps) for one in stream.next(task.streams)]
        counts, size = count(sequences), self.padded_batch_size
        packed = counts["tokens"] / sum(len(one.input_ids) for one in sequences)
        self.result.add(f"{prefix}packing_efficiency", 100 * packed, "%")
        padded = padded_efficiency(sequences, size)
        self.result.add(f"{prefix}padded_efficiency", 100 * padded, "%")
        self.result.settings[f"{prefix}efficiency"] = {
            "seq_len": len(sequences[0].input_ids),
            "sequences": len(sequences),
            "documents": counts["documents"],
            "mean_tokens_of_a_document": round(counts["tokens"] / counts["documents"], 1),
            "padded_batch_size": size,
        }
        return max(1, round(counts["documents"] / steps / size))

    def compare_with_padded(self, task: TrainingTask, accumulation: int, prefix: str = "") -> None:
        """Measure the tokens per second of packed and padded training."""
        progress(f"{prefix}training, packed and padded, interleaved")
        candidates = {
            "packed": partial(train_packed, task),
            "padded": partial(train_padded, task, self.padded_batch_size, accumulation),
        }
        compared = compare(candidates, task.device, seconds=self.seconds, rounds=_ROUNDS)
        speedup = f"{prefix}useful_tokens_speedup_vs_padded"
        rates = {name: compared.rate(name, "tokens") for name in candidates}
        if compared.failures:
            reasons = [f"{name}: {reason}" for name, reason in compared.failures.items()]
            self.result.skip(speedup, "; ".join(reasons))
            return
        self.result.add_ratio(speedup, rates["packed"], rates["padded"])
        self.result.settings[f"{prefix}speed"] = {
            "padded_batch_size": self.padded_batch_size,
            "padded_batches_in_a_step": accumulation,
            "micro_batch_size": task.loop.micro_batch_size or task.loop.global_batch_size,
            "precision": task.loop.precision,
            "attn_implementation": task.model.attn_implementation,
            "compiled": task.model.compile,
            "max_z_loss": task.optim.max_z_loss,
            "rounds": len(compared.rounds["packed"]),
        }
        for name, infix in (("packed", ""), ("padded", "padded_")):
            self._add_candidate(compared, name, prefix, infix)

    def _add_candidate(self, compared: Comparison, name: str, prefix: str, infix: str) -> None:
        rounds, start = compared.rounds[name], f"{prefix}{infix}"
        rate = statistics.median(one.rate("tokens") for one in rounds)
        self.result.add(f"{start}useful_tokens_per_second", rate, "tokens/s")
        loading = statistics.median(one.rate("loading") for one in rounds)
        self.result.add(f"{start}data_share_of_time", 100 * loading, "%")
        memory = rounds[-1].memory
        reason = "this system does not report the peak memory of a process"
        gib = None if memory is None else memory / _GIB
        self.result.add_or_skip(f"{start}training_peak_memory", gib, "GiB", reason)
        steps = sum(one.steps for one in rounds)
        speed = self.result.settings[f"{prefix}speed"]
        speed[f"{infix}tokens_in_a_step"] = round(compared.total(name, "tokens") / steps)
        speed[f"{infix}steps"] = steps

    def check_fast_path(self, task: TrainingTask, prefix: str) -> str | None:
        """Compare the fast path with the plain one; return why it may not be timed, or None."""
        progress(f"{prefix}check: fast path against float32 and sdpa")
        try:
            found = run_once(partial(compare_paths, task), task.device).counts
        except CandidateError as error:
            return f"check: {error}"
        self.result.add(f"{prefix}loss_difference", found["loss"], "nats")
        self.result.add(f"{prefix}state_difference", 100 * found["state"], "%")
        self.result.add(f"{prefix}gradient_difference", 100 * found["gradient"], "%")
        self.result.settings[f"{prefix}tolerances"] = {
            "loss_nats": self.loss_tolerance,
            "state_percent": 100 * STATE_TOLERANCE,
            "gradient_percent": 100 * GRADIENT_TOLERANCE,
        }
        agrees = (
            found["loss"] <= self.loss_tolerance
            and found["state"] <= STATE_TOLERANCE
            and found["gradient"] <= GRADIENT_TOLERANCE
        )
        return None if agrees else "the fast path differs from the plain one"

    def _add_shape(self, task: TrainingTask, shape: Shape, compared: Comparison) -> None:
        name, prefix = shape.name, f"{shape.name}_"
        rounds = compared.rounds[name]
        rate = statistics.median(one.rate("tokens") for one in rounds)
        self.result.add(f"{prefix}tokens_per_second", rate, "tokens/s")
        tokens = compared.total(name, "tokens")
        flops = flops_per_token(
            shape.config,
            2 * compared.total(name, "context") / tokens + 1,
            target_fraction=compared.total(name, "labels") / tokens,
        )
        peak = peak_flops(resolve_device(task.device), task.precision)
        if peak is None:
            self.result.skip(f"{prefix}mfu", "the peak of this device is unknown (train/flops.py)")
        else:
            note = "of non-padding tokens"
            self.result.add(f"{prefix}mfu", 100 * mfu(rate, flops, peak), "%", note)
        if rounds[-1].memory is not None:
            self.result.add(f"{prefix}peak_memory", rounds[-1].memory / _GIB, "GiB")
        self.result.settings[name] = {
            "global_batch_size": task.loop.global_batch_size,
            "micro_batch_size": task.loop.micro_batch_size,
            "seq_len": shape.seq_len,
            "precision": task.loop.precision,
            "attn_implementation": task.model.attn_implementation,
            "compiled": task.model.compile,
            "activation_checkpointing": task.model.activation_checkpointing,
            "gigaflops_per_token": round(flops / 1e9, 6),
            "seconds_per_step": round(compared.step_seconds(name), 3),
            "rounds": len(rounds),
        }


if __name__ == "__main__":
    main()
