"""Weights laid out for decoding: few rows at a time, each weight read once.

Contract: a `Matrix` maps (N, K) to (N, M) and reads its weights once however many rows there are;
what it computes for a row of float32 on a CPU doesn't depend on the other rows, bit for bit. A
layout is made from a weight (M, K) as `torch.nn.Linear` holds it.

On a CPU the float layouts are oneDNN's, through the operators that torch.compile itself uses for
frozen weights: plain `linear` of two rows (a guided pair) reads weights at a third of the memory's
speed, these at two thirds and more. The integer layouts are PyTorch's own weight-only kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from liquidmm.errors import ConfigError, suggest

Weights = Literal["float32", "bfloat16", "int8", "int4"]
"""How weights are held: as numbers of 32 or 16 bits; as 8-bit integers with a scale for each row;
as 4-bit integers with scale and offset for each `GROUP` of a row."""

GROUP = 32
"""Weights that share a scale in 4 bits."""

Matrix = Callable[[Tensor], Tensor]
"""Maps (N, K) to (N, M)."""

COLUMNS = {"float32": 1, "bfloat16": 1, "int8": 16, "int4": GROUP}
"""What the columns of a weight must be a multiple of; the kernels don't check it."""


def fewest_rows(dtype: torch.dtype) -> int:
    """Return how many rows a product of oneDNN should have at least; fewer are padded.

    A single row takes another kernel, whose sums are rounded in another order. In float32 the one
    for two rows reads weights at two thirds of the speed of that for four (an EPYC of 2023).
    """
    return 4 if dtype == torch.float32 else 2


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Put rows of zeros behind those of ``x``, (N, K), up to ``rows``."""
    return functional.pad(x, (0, 0, 0, max(0, rows - x.shape[0])))


class PlainMatrix:
    """The weight as it is; for accelerators."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        """The weight, (M, K)."""
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, K) to (N, M)."""
        return functional.linear(x, self.weight, self._bias)


class PackedMatrix:
    """oneDNN's layout on a CPU, float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        operators = torch.ops.mkldnn
        packed = operators._reorder_linear_weight(weight.to(dtype).contiguous(), 2)
        self._weight: Tensor = packed
        self._bias = None if bias is None else bias.to(dtype)
        self._fewest = fewest_rows(dtype)
        self._multiply = operators._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, K) to (N, M)."""
        rows = x.shape[0]
        if rows < self._fewest:
            return self(pad_rows(x, self._fewest))[:rows]
        y: Tensor = self._multiply(x, self._weight, self._bias, "none", [], "")
        return y


class Int8Matrix:
    """8-bit integers with a scale for each row of the weight, for bfloat16 inputs on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        _check_columns(weight, "int8")
        weight = weight.float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self._weight = (weight / scale[:, None]).round().to(torch.int8)
        self._scale = scale.bfloat16()
        self._bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, K) to (N, M)."""
        y = torch._weight_int8pack_mm(x, self._weight, self._scale)
        return y if self._bias is None else y.add_(self._bias)


class Int4Matrix:
    """4-bit integers with scale and offset for each group, for bfloat16 inputs on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        _check_columns(weight, "int4")
        rows, columns = weight.shape
        self._rows = rows
        self._pad = -rows % 16  # the kernel takes blocks of 16 rows
        weight = functional.pad(weight.float(), (0, 0, 0, self._pad))
        groups = weight.view(rows + self._pad, columns // GROUP, GROUP)
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = ((high - low) / 15).clamp(min=torch.finfo(torch.float32).tiny)
        # A weight is ``(number - 8) * scale + offset``.
        offset = low + 8 * scale
        numbers = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        self._weight = torch._convert_weight_to_int4pack_for_cpu(
            numbers.view_as(weight).to(torch.int32), 2
        )
        both = torch.stack((scale, offset), dim=-1)
        self._scales = both.transpose(0, 1).contiguous().bfloat16()
        self._bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, K) to (N, M)."""
        y = torch._weight_int4pack_mm_for_cpu(x, self._weight, GROUP, self._scales)
        y = y[:, : self._rows] if self._pad else y
        return y if self._bias is None else y.add_(self._bias)


def _check_columns(weight: Tensor, weights: Weights) -> None:
    if weight.shape[1] % COLUMNS[weights]:
        raise ConfigError(
            f"weights: {weights} takes groups of {COLUMNS[weights]} columns, and a weight has "
            f"{weight.shape[1]}. Choose another layout."
        )


def matrix_maker(
    weights: Weights, device: torch.device
) -> Callable[[Tensor, Tensor | None], Matrix]:
    """Choose the layout.

    Args:
        weights: How they are held; inputs are float32 for "float32", else bfloat16.
        device: Where they are.

    Returns:
        Makes a matrix of weight (M, K) and bias (M,) or None, of any type.

    Raises:
        ConfigError: There is no such layout, or none on this device.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights: '{weights}' is unknown.{suggest(weights, get_args(Weights))}")
    cpu = device.type == "cpu"
    if weights in ("int8", "int4"):
        if not cpu:
            raise ConfigError(
                f"weights: {weights} needs a CPU ({device}). Choose float32 or bfloat16 there."
            )
        return Int8Matrix if weights == "int8" else Int4Matrix
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    floats = PackedMatrix if cpu and has_onednn else PlainMatrix
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    return partial(floats, dtype=dtype)
