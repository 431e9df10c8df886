"""Backends that run the language model: the interface that the engine needs, and the choice of one.

"cpu" is C for CPUs (`cpu`) and "torch" is fused PyTorch for accelerators (`pytorch`); both run the
Llama-like families of `llama`. "transformers" (`hf`) runs any family with transformers' own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError, suggest
from liquidmm.generate.backends import cpu, llama
from liquidmm.generate.backends.cpu import CpuBackend
from liquidmm.generate.backends.hf import TransformersBackend
from liquidmm.generate.backends.pytorch import TorchBackend

BackendKind = Literal["cpu", "torch", "transformers"]
"""The backends, the fastest first."""

Quantization = Literal["int8"]
"""Weights as 8-bit integers with one scale per output."""


class Backend(Protocol):
    """A language model with a preallocated KV cache.

    A slot of the cache contains one sequence from position 0. Sequences of different lengths run
    together, and each gets the same results as when it runs alone. The caller tracks the lengths:
    positions after the end of a sequence are never read and are overwritten later.
    """

    @property
    def device(self) -> torch.device:
        """Device that runs the model."""

    @property
    def batch_invariant(self) -> bool:
        """Whether the results for a sequence are bitwise equal in batches of any size.

        For other backends, the numbers of sequences and tokens are rounded up: each number selects
        kernels that round differently and that the device caches.
        """

    def reserve(self, slots: int, length: int) -> None:
        """Grow the cache to this many slots of this length, keeping its contents."""

    def forward(self, tokens: Tensor, starts: Tensor, first_slot: int, kv_length: int) -> Tensor:
        """Feed the next tokens to contiguous slots.

        Args:
            tokens: (S, T), int64.
            starts: Tokens that each slot already contains, (S,), int64.
            first_slot: The first of the S slots.
            kv_length: Positions to attend to, at least ``max(starts) + T``.

        Returns:
            Last hidden states, (S, T, D).
        """

    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """Return the logits, (N, V), of a range of tokens for last hidden states, (N, D)."""

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of a slot to other slots."""


def choose_backend(
    model: PreTrainedModel, quantize: Quantization | None = None, kind: BackendKind | None = None
) -> BackendKind:
    """Return the fastest backend that supports a model, or check the one in ``kind``.

    Args:
        model: The model, on its device.
        quantize: Quantization of the weights; None keeps their dtype.
        kind: The backend; None chooses the fastest.

    Raises:
        ConfigError: The backend or the quantization is unknown, or does not support this model.
    """
    for option, value, known in (
        ("quantize", quantize, get_args(Quantization)),
        ("backend", kind, get_args(BackendKind)),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{option}: '{value}' is unknown.{suggest(value, known)}")
    kinds: tuple[BackendKind, ...] = (kind,) if kind else get_args(BackendKind)
    reasons = [(one, _unsupported_reason(one, model, quantize)) for one in kinds]
    for one, reason in reasons:
        if reason is None:
            return one
    given = f"backend: '{kind}'" if quantize is None else f"quantize: '{quantize}'"
    why = "; ".join(f"{one}: {reason}" for one, reason in reasons)
    raise ConfigError(f"{given} does not support this model ({why}). Remove the setting.")


def make_backend(
    model: PreTrainedModel, kind: BackendKind, quantize: Quantization | None = None
) -> Backend:
    """Create the backend that `choose_backend` returned."""
    if kind == "transformers":
        return TransformersBackend(model)
    return CpuBackend(model, quantize) if kind == "cpu" else TorchBackend(model)


def context_length(model: PreTrainedModel) -> int:
    """Return the maximum length of a sequence."""
    return int(model.config.get_text_config(decoder=True).max_position_embeddings)


def _unsupported_reason(
    kind: BackendKind, model: PreTrainedModel, quantize: Quantization | None
) -> str | None:
    if kind != "cpu" and quantize is not None:
        return "it does not quantize"
    if kind == "transformers":
        return None
    return llama.unsupported_reason(model) or (
        cpu.unsupported_reason(model) if kind == "cpu" else None
    )
