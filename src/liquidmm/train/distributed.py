"""Process group, collectives and FSDP2 sharding.

`torchrun`, or any launcher that sets the same variables, starts the ranks. Without it there is a
single rank without a process group, and every collective returns its input. Parameters, gradients
and optimizer state are sharded with PyTorch's FSDP2 (ZeRO-3 in DeepSpeed's terms).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

import torch
import torch.distributed as dist
from annotated_types import Ge
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.ranges import RangeChecked
from liquidmm.runtime import resolve_device

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig(RangeChecked):
    """How the ranks share the model; this affects memory and speed but never the result."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "replicas": "dp_replicate",
        "reshard": "reshard_after_forward",
        "accumulate": "grad_accumulation",
        "offload": "cpu_offload",
    }

    dp_replicate: Annotated[int, Ge(1)] = 1
    """Number of replicas of the model, each sharded over an equal group of ranks; 1 shards over all
    ranks. One replica per node keeps the all-gathers within the nodes (hybrid sharding)."""
    reshard_after_forward: bool = True
    """Free the gathered weights of a block after its forward pass and gather them again for the
    backward pass (ZeRO-3). False keeps them (ZeRO-2): more memory, less communication."""
    grad_accumulation: Literal["full", "sharded"] = "full"
    """How the gradients of several micro-batches are accumulated: "full" keeps unsharded gradients
    and reduces them once per step; "sharded" reduces after each micro-batch: more communication, a
    fraction of the memory."""
    cpu_offload: bool = False
    """Keep shards and optimizer state in CPU memory and update them there."""

    def shards(self, ranks: int) -> int:
        """Return the number of shards of each replica; `dp_replicate` must divide the ranks."""
        if ranks % self.dp_replicate:
            raise ConfigError(
                f"parallel.dp_replicate: expected a divisor of the number of ranks ({ranks}), got "
                f"{self.dp_replicate}."
            )
        return ranks // self.dp_replicate


class SilentExit(SystemExit):
    """Ends a rank whose error the first rank reports."""


class Distributed:
    """The ranks of a run, seen from one of them; a context manager that ends the process group."""

    def __init__(self, device: str | None = None) -> None:
        """Join the process group.

        With several ranks on GPUs, each takes the GPU of its local rank.

        Raises:
            ConfigError: The device is unknown or not available.
        """
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = resolve_device(device)
        if self.size > 1 and self.device.type == "cuda":
            self.device = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():
            gpu = self.device.type == "cuda"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                device_id=self.device if gpu else None,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Leave the process group; after an error, do not wait for ranks that may have exited."""
        if self.size > 1 and dist.is_initialized():
            if error is None:
                dist.barrier()
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and logs."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the (small, picklable) values of all ranks in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return flag if self.size == 1 else bool(self.all_reduce(torch.tensor(float(flag))))

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """Let a block succeed on all ranks or fail on all of them.

        Raises:
            LiquidError: The block failed on some rank. The first rank raises the error, which names
                the failed rank if it is a different one; the others exit silently.
        """
        failure: LiquidError | None = None
        try:
            yield
        except LiquidError as error:
            failure = error
        messages = self.gather(None if failure is None else str(failure))
        failed = next((rank for rank, text in enumerate(messages) if text is not None), None)
        if failed is None:
            return
        if not self.is_main:
            raise SilentExit(1)
        raise failure or LiquidError(f"rank {failed}: {messages[failed]}")

    def check_equal(self, value: object, name: str, fix: str) -> None:
        """Check that ``str(value)`` is the same on all ranks.

        Raises:
            LiquidError: The values differ; the message contains ``name`` and ends with ``fix``.
        """
        values = self.gather(str(value))
        with self.raise_together():
            other = next((rank for rank, text in enumerate(values) if text != values[0]), None)
            if other is not None:
                raise LiquidError(
                    f"rank {other}: {name} is {values[other]}; on rank 0 it is {values[0]}. {fix}"
                )

    def shard(
        self,
        root: nn.Module,
        blocks: Iterable[nn.Module],
        config: ParallelConfig,
        precision: torch.dtype,
    ) -> None:
        """Shard a model over the ranks, block by block; do nothing if there is only one rank.

        The parameters of ``root`` outside its blocks form one FSDP unit. ``precision`` is the dtype
        of the gathered weights and of the matrix products; gradients are reduced in float32.

        Raises:
            ConfigError: ``dp_replicate`` does not divide the number of ranks.
        """
        if self.size == 1:
            return
        shape: tuple[int, ...] = (config.dp_replicate, config.shards(self.size))
        names: tuple[str, ...] = ("dp_replicate", "dp_shard")
        if config.dp_replicate == 1:
            shape, names = shape[1:], names[1:]
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        policy = MixedPrecisionPolicy(
            param_dtype=None if precision == torch.float32 else precision,
            reduce_dtype=torch.float32,
        )
        pinned = self.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if config.cpu_offload else OffloadPolicy()
        for block in blocks:
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=config.reshard_after_forward,
            )
        fully_shard(root, mesh=mesh, mp_policy=policy, offload_policy=offload)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; return any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
