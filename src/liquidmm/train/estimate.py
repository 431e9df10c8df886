"""Estimate of a run before it starts (`--dry-run`): model, data, memory and time.

`estimate` runs every check that needs no weights and writes nothing. Parameters, samples and
positions are exact counts; data statistics come from a sample that depends only on the seed. Memory
is for one rank: weights, gradients and optimizer state are exact; activations follow a formula for
Llama-like blocks and an attention kernel that does not keep its scores (any but "eager"). Not
included: weights that FSDP gathers (about two blocks and the embedding table), the CUDA context,
NCCL buffers and fragmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from transformers import PreTrainedConfig, PreTrainedModel

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.data.packing import PackedSequence, split
from liquidmm.model.checkpoint import empty_language_model
from liquidmm.ranges import RangeChecked
from liquidmm.runtime import resolve_device
from liquidmm.train.config import TrainConfig
from liquidmm.train.distributed import Distributed
from liquidmm.train.flops import flops_per_token, head_size, mfu, peak_flops, peak_of
from liquidmm.train.lora import decoder_blocks
from liquidmm.train.loss import LossConfig
from liquidmm.train.model import head_of, select_trainable, trained_fraction
from liquidmm.train.muon import Muon
from liquidmm.train.optim import build_optimizers, parameters_of
from liquidmm.train.setup import Setup, open_setup

USABLE = 0.8
"""Fraction of a device's memory that a run can use; the rest covers what the estimate omits."""

_EXAMPLES = 100
_SEQUENCES = 64
_GIB = 2**30
_ASSUMED_GPU = "NVIDIA H100"
# Bytes of a weight in NF4 with double quantization: 4 bits, 8 bits for each 64 weights, and 32 bits
# for each 64 * 256 (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine(RangeChecked):
    """The hardware that a run is planned for."""

    num_gpus: Annotated[int, Ge(1)] = 1
    """Number of GPUs, one rank each."""
    gpu_memory_gib: Annotated[float, Gt(0)] = 80.0
    """Memory of a GPU in GiB."""
    peak_tflops: Annotated[float | None, Gt(0)] = None
    """Peak dense TFLOP/s of a GPU; None uses that of this machine's GPU, or of an H100."""
    assumed_mfu: Annotated[float, Gt(0), Le(1)] = 0.4
    """Model FLOPs utilization to assume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEstimate:
    """One source of the training data; tokens and epochs are estimates."""

    path: Path
    task: str
    samples: int
    """Number of samples that the task can use."""
    share: float
    """Fraction of the examples."""
    token_share: float
    mean_tokens: float
    """Mean tokens per example."""
    epochs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DataEstimate:
    """The training data of a run, estimated."""

    sources: tuple[SourceEstimate, ...]
    packing_efficiency: float
    """Fraction of the positions that are not padding."""
    targets: float
    """Fraction of the positions with a target."""
    document_tokens: float
    """Twice the mean number of tokens that a token attends to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of one rank in bytes."""

    weights: int
    """Shard of the float32 weights."""
    gradients: int
    """Shard of the float32 gradients; unsharded if micro-batches accumulate them in full."""
    optimizer: int
    """Shard of the optimizer state: two averages per weight for AdamW, one for Muon."""
    activations: int
    """Activations of a micro-batch and a chunk of logits."""
    cpu: int
    """Bytes that `parallel.cpu_offload` keeps in CPU memory instead."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The requirements of a run."""

    model: str
    """Class of the language model."""
    parameters: int
    """Number of parameters; tied ones count once."""
    trained: int
    """Number of trained parameters, including adapters."""
    vocabulary: dict[str, int]
    """Token id layout, and the rows of the embedding table."""
    data: DataEstimate
    steps: int
    tokens_per_step: int
    """Positions per step on all ranks, including padding."""
    tokens: int
    """Positions of the whole run."""
    batch_size_per_rank: int
    micro_batches: int
    """Number of micro-batches per rank and step."""
    machine: Machine
    memory: Memory
    memory_total: int
    fits: bool
    """Whether the total is at most `USABLE` of the device's memory."""
    flops_per_token: float
    flops: float
    peak_tflops: float
    peak_of: str
    """Name of the GPU with that peak."""
    hours: float
    """Time of all steps without evaluation, samples and checkpoints; estimate."""


def estimate(run: TrainConfig, machine: Machine) -> Estimate:
    """Check a run and estimate what it needs.

    Raises:
        ConfigError: A setting does not fit the model, the ranks or another setting.
        CheckpointError: The checkpoint is missing or damaged, or was not expanded.
        DataError: A folder of shards cannot be read or does not fit, or an example is too long.
        MissingExtraError: The run has adapters, and PEFT is not installed.
    """
    batch_size = run.batch_size_per_rank(machine.num_gpus)
    setup = open_setup(run, machine.num_gpus, torch.device("cpu"))
    model = empty_language_model(setup.folder)
    table, _ = head_of(model).weight.shape
    parameters = sum(weight.numel() for weight in model.parameters())
    select_trainable(model, setup.processor.vocabulary, run.model)
    memory = estimate_memory(model, run, machine.num_gpus)

    step = run.train.global_batch_size * run.data.seq_len
    tokens = run.train.steps * step
    data = estimate_data(setup, tokens)
    flops = _flops(model.config, model, data)
    peak, owner = _peak(run, machine)
    return Estimate(
        model=type(model).__name__,
        parameters=parameters,
        trained=_count_trained(model),
        vocabulary={**setup.processor.vocabulary.to_dict(), "rows": table},
        data=data,
        steps=run.train.steps,
        tokens_per_step=step,
        tokens=tokens,
        batch_size_per_rank=batch_size,
        micro_batches=batch_size // (run.train.micro_batch_size or batch_size),
        machine=machine,
        memory=memory,
        memory_total=memory.total,
        fits=memory.total <= USABLE * machine.gpu_memory_gib * _GIB,
        flops_per_token=flops,
        flops=tokens * flops,
        peak_tflops=peak / 1e12,
        peak_of=owner,
        hours=tokens * flops / (machine.num_gpus * peak * machine.assumed_mfu) / 3600,
    )


def estimate_data(setup: Setup, tokens: int) -> DataEstimate:
    """Estimate the data that a run of ``tokens`` reads; the position of its stream does not change.

    Raises:
        DataError: An example in the sample contains an image and is too long.
    """
    stream, packing = setup.stream, setup.run.data.packing
    identity = stream.fingerprint()
    sizes: list[int] = identity["sizes"]
    shares: list[float] = identity["weights"]
    means = []
    for number, size in enumerate(sizes):
        examples = (stream.example(number, index) for index in range(min(size, _EXAMPLES)))
        lengths = [
            sum(len(piece.input_ids) for piece in pieces)
            for pieces in (split(example, packing) for example in examples)
            if pieces
        ]
        means.append(float(np.mean(lengths)) if lengths else 0.0)
    packed: list[PackedSequence] = []
    for number in range(_SEQUENCES):  # a buffer has at least one sequence
        if len(packed) < _SEQUENCES:
            packed += stream.buffer(number)
    efficiency = float(np.mean([each.num_tokens for each in packed])) / packing.seq_len
    mean = sum(share * each for share, each in zip(shares, means, strict=True))
    count = tokens * efficiency / mean
    return DataEstimate(
        sources=tuple(
            SourceEstimate(
                path=source.path,
                task=source.task,
                samples=size,
                share=share,
                token_share=share * each / mean,
                mean_tokens=each,
                epochs=count * share / size,
            )
            for source, size, share, each in zip(
                setup.run.data.sources, sizes, shares, means, strict=True
            )
        ),
        packing_efficiency=efficiency,
        targets=float(np.mean([each.labels != IGNORE_INDEX for each in packed])),
        document_tokens=float(2 * np.mean([each.position_ids for each in packed]) + 1),
    )


def estimate_memory(model: PreTrainedModel, run: TrainConfig, ranks: int) -> Memory:
    """Estimate the memory of one rank from a decoder without weights."""
    shards = run.parallel.shards(ranks)
    batch_size = run.batch_size_per_rank(ranks)
    micro = run.train.micro_batch_size or batch_size
    trained = _count_trained(model)
    small = 0
    if run.model.lora is not None and run.model.lora.load_in_4bit:
        blocks = decoder_blocks(model).parameters()
        small = sum(w.numel() for w in blocks if w.dim() == 2 and not w.requires_grad)
    every = sum(weight.numel() for weight in model.parameters())
    weights = (4 * (every - small) + round(_FOUR_BITS * small)) // shards
    optimizer = 0
    for each in build_optimizers(model, run.optim):
        averages = 1 if isinstance(each, Muon) else 2
        optimizer += 4 * averages * sum(weight.numel() for weight in parameters_of(each))
    optimizer //= shards
    gradients = 4 * trained // shards
    in_full = ranks > 1 and micro < batch_size and run.parallel.grad_accumulation == "full"
    unsharded = 4 * trained if in_full else 0
    offload = run.parallel.cpu_offload and ranks > 1
    return Memory(
        weights=0 if offload else weights,
        gradients=unsharded if offload else max(unsharded, gradients),
        optimizer=0 if offload else optimizer,
        activations=_activations(model.config.get_text_config(), run, micro, ranks),
        cpu=weights + gradients + optimizer if offload else 0,
    )


def block_activations(config: PreTrainedConfig, *, autocast: bool) -> int:
    """Return how many values a block keeps per token for its backward pass.

    This is 4 times the query width (queries, keys, values, output), 4 times the feed-forward width,
    and 8 times the hidden size (inputs of norms and products) or 13 times under autocast, which
    copies them. For a Llama, the error is below 20%.
    """
    queries: int = config.num_attention_heads * head_size(config)
    experts: int = getattr(config, "num_experts_per_tok", None) or 1
    inputs: int = (13 if autocast else 8) * config.hidden_size
    return inputs + 4 * queries + 4 * experts * int(config.intermediate_size)


def _activations(
    config: PreTrainedConfig, run: TrainConfig, micro_batch_size: int, ranks: int
) -> int:
    size = _precision(run).itemsize
    positions = micro_batch_size * run.data.seq_len
    layers: int = config.num_hidden_layers
    block = block_activations(config, autocast=ranks == 1 and size < 4)
    kept = layers * block
    if run.model.activation_checkpointing:
        kept = layers * config.hidden_size + block
    device = torch.device(run.device or "cuda")
    chunk = min(positions, LossConfig().positions(config.vocab_size, device)) * config.vocab_size
    return size * positions * kept + 2 * 4 * int(chunk)  # and logits with their gradient


def utilization(
    setup: Setup, model: PreTrainedModel, world: Distributed
) -> Callable[[float], float] | None:
    """Return a function from tokens per second to MFU; None if the device's peak is unknown."""
    peak = peak_flops(world.device, _precision(setup.run))
    if peak is None:
        return None
    flops = _flops(setup.config, model, estimate_data(setup, 1))
    return lambda speed: round(mfu(speed, flops, peak * world.size), 4)


def _flops(config: PreTrainedConfig, model: PreTrainedModel, data: DataEstimate) -> float:
    return flops_per_token(
        config,
        data.document_tokens,
        target_fraction=data.targets,
        trained_fraction=trained_fraction(model),
    )


def _count_trained(model: PreTrainedModel) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _peak(run: TrainConfig, machine: Machine) -> tuple[float, str]:
    if machine.peak_tflops is not None:
        return machine.peak_tflops * 1e12, "as given"
    here = resolve_device(None)  # the run's device may be on another machine
    peak = peak_flops(here, _precision(run))
    if peak is not None:
        return peak, torch.cuda.get_device_name(here)
    assumed = peak_of(_ASSUMED_GPU, _precision(run))
    assert assumed is not None
    return assumed, f"assumed: {_ASSUMED_GPU}"


def _precision(run: TrainConfig) -> torch.dtype:
    return cast("torch.dtype", getattr(torch, run.train.precision))
