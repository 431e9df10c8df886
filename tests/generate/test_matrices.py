from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from liquidmm.errors import ConfigError
from liquidmm.generate.matrices import Activation, Int4Matrix, activate, matrix_maker

CPU = torch.device("cpu")


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("weights", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.06), ("int4", 0.6)]
)
def test_products_and_what_is_fused_with_them(weights: Any, tolerance: float, biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64) / 8, torch.randn(96) if biased else None
    matrix = matrix_maker(weights, CPU)(weight, bias)
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    x, other = torch.randn(5, 64), torch.randn(5, 96)
    x, other = x.to(dtype).float(), other.to(dtype).float()
    expected = functional.linear(x, weight, bias)
    near = {"atol": tolerance, "rtol": tolerance}
    inputs, more = x.to(dtype), other.to(dtype)
    torch.testing.assert_close(matrix(inputs).float(), expected, **near)
    torch.testing.assert_close(matrix.plus(inputs, more).float(), expected + other, **near)
    torch.testing.assert_close(
        matrix.times(inputs, more).float(), expected * other, atol=4 * tolerance, rtol=tolerance
    )
    for name in get_args(Activation):
        made = matrix.activated(inputs, name).float()
        torch.testing.assert_close(made, activate(expected, name), **near)
    assert torch.equal(more.float(), other), "an input was written over"


def test_integers_of_four_bits_keep_the_ends_of_a_group() -> None:
    weight = torch.linspace(-2, 13, 16).repeat(16, 4)
    matrix = Int4Matrix(weight, None)
    identity = torch.eye(64).bfloat16()
    torch.testing.assert_close(matrix(identity).float(), weight.T, atol=0.05, rtol=0.01)


def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(40, 176), torch.randn(40, 48)
    matrix = matrix_maker("float32", CPU)(torch.randn(48, 176), None)
    whole, added = matrix(x), matrix.plus(x, other)
    for rows in (1, 2, 3, 7, 33):
        assert torch.equal(matrix(x[:rows]), whole[:rows])
        assert torch.equal(matrix.plus(x[:rows], other[:rows]), added[:rows])


def test_unknown_and_impossible_layouts_are_named() -> None:
    with pytest.raises(ConfigError, match="weights: 'int5' is unknown.*'int4'|'int8'"):
        matrix_maker("int5", CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights: int8 needs a CPU"):
        matrix_maker("int8", torch.device("cuda"))
    for weights, group in (("int8", 16), ("int4", 32)):
        with pytest.raises(ConfigError, match=f"{weights} takes groups of {group} columns.*40"):
            matrix_maker(weights, CPU)(torch.randn(8, 40), None)  # type: ignore[arg-type]
