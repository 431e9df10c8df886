"""The ranks of a run: who they are, what they tell each other, and how a model is spread over them.

Contract: `torchrun` (or any launcher that sets its variables) starts the ranks; without it there is
one, which needs no process group, and everything here is then the identity. Parameters, gradients
and optimizer state are sharded with PyTorch's FSDP2 (ZeRO-3 in DeepSpeed's words); nothing above
this file calls `torch.distributed` except the saves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.runtime import resolve_device

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the ranks share the model; it changes memory and speed, never what is learnt."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "replicas": "dp_replicate",
        "reshard": "reshard_after_forward",
        "accumulate": "grad_accumulation",
        "offload": "cpu_offload",
    }

    dp_replicate: int = 1
    """Groups of ranks that each hold the whole model, sharded inside the group; 1 shards over all
    ranks. One group for each node keeps the gathering inside the nodes (hybrid sharding)."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass and gather them again for the backward
    one (ZeRO-3); false keeps them in between (ZeRO-2): more memory, less communication."""
    grad_accumulation: Literal["full", "sharded"] = "full"
    """How gradients of several micro-batches add up: whole on each rank and exchanged once in a
    step, or exchanged after each micro-batch: more communication, a fraction of the memory."""
    cpu_offload: bool = False
    """Keep shards and optimizer in the CPU's memory, and update them there."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.dp_replicate < 1:
            raise ConfigError(f"dp_replicate: must be at least 1 ({self.dp_replicate}).")

    def shards(self, ranks: int) -> int:
        """Give the parts that each group of so many ranks cuts the model into.

        Raises:
            ConfigError: ``dp_replicate`` does not divide the number of ranks.
        """
        if ranks % self.dp_replicate:
            raise ConfigError(
                f"parallel.dp_replicate: {self.dp_replicate} does not divide {ranks} ranks."
            )
        return ranks // self.dp_replicate


class Quiet(SystemExit):
    """Ends a rank whose error the first rank has told already."""


class Distributed:
    """All ranks of a run, seen from one of them; a context manager that ends the process group."""

    def __init__(self, device: str | None = None) -> None:
        """Join the ranks that the launcher started.

        Args:
            device: "cpu", "cuda", "mps"; None takes the best there is. With several ranks on GPUs,
                each takes the one of its local rank.

        Raises:
            ConfigError: The device is unknown or not here.
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
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the process group; after an error without waiting for ranks that may be gone."""
        if self.size > 1 and dist.is_initialized():
            if error is None:
                dist.barrier()
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add a tensor up over the ranks; every rank gets the sum."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Give every rank the (small, picklable) values of all ranks, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on some rank."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(float(flag))))

    @contextlib.contextmanager
    def raise_together(self) -> Iterator[None]:
        """Let a block succeed on all ranks or on none.

        Raises:
            LiquidError: It failed on some rank. The first rank raises, with the number of the rank
                where that is another one; the others end quietly.
        """
        failure: LiquidError | None = None
        try:
            yield
        except LiquidError as error:
            failure = error
        if self.size == 1:
            if failure is not None:
                raise failure
            return
        told = self.gather(None if failure is None else str(failure))
        first = next((rank for rank, text in enumerate(told) if text is not None), None)
        if first is None:
            return
        if not self.is_main:
            raise Quiet(1)
        raise failure or LiquidError(f"rank {first}: {told[first]}")

    def check_equal(self, value: object, what: str, remedy: str) -> None:
        """Refuse ranks that differ in something.

        Args:
            value: What all ranks must have alike; compared by its text.
            what: Its name, for the message.
            remedy: What to do.

        Raises:
            LiquidError: They differ.
        """
        values = self.gather(str(value))
        with self.raise_together():
            other = next((rank for rank, text in enumerate(values) if text != values[0]), None)
            if other is not None:
                raise LiquidError(
                    f"rank {other}: {what} is {values[other]}, on rank 0 it is {values[0]}. "
                    f"{remedy}"
                )

    def shard(
        self,
        root: nn.Module,
        blocks: Iterable[nn.Module],
        config: ParallelConfig,
        precision: torch.dtype,
    ) -> None:
        """Spread a model over the ranks, block by block; with one rank do nothing.

        Args:
            root: The whole model; what lies outside its blocks is gathered as one.
            blocks: Its decoder blocks.
            config: Groups, resharding and offloading.
            precision: Type of the gathered weights and of the products; gradients are added up in
                float32.

        Raises:
            ConfigError: ``dp_replicate`` does not divide the number of ranks.
        """
        if self.size == 1:
            return
        mesh = self._mesh(config)
        policy = MixedPrecisionPolicy(
            param_dtype=None if precision == torch.float32 else precision,
            reduce_dtype=torch.float32,
        )
        pinned = self.device.type == "cuda"
        cpu_offload = CPUOffloadPolicy(pin_memory=pinned) if config.cpu_offload else OffloadPolicy()
        for block in blocks:
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=cpu_offload,
                reshard_after_forward=config.reshard_after_forward,
            )
        fully_shard(root, mesh=mesh, mp_policy=policy, offload_policy=cpu_offload)

    def _mesh(self, config: ParallelConfig) -> DeviceMesh:
        shards = config.shards(self.size)
        kind = self.device.type
        if config.dp_replicate == 1:
            return init_device_mesh(kind, (self.size,))
        names = ("dp_replicate", "dp_shard")
        return init_device_mesh(kind, (config.dp_replicate, shards), mesh_dim_names=names)


def synchronize_gradients(root: nn.Module, last: bool) -> None:
    """Say before a micro-batch whether its backward pass ends the step.

    Only then are gradients exchanged; those of the micro-batches before add up on each rank.
    """
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; a plain one is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
