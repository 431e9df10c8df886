from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from liquidmm.errors import ConfigError
from liquidmm.generate.matrices import Int4Matrix, matrix_maker

CPU = torch.device("cpu")


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("weights", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.06), ("int4", 0.6)]
)
def test_products(weights: Any, tolerance: float, biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64) / 8, torch.randn(96) if biased else None
    matrix = matrix_maker(weights, CPU)(weight, bias)
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    for rows in (1, 2, 5):
        x = torch.randn(rows, 64).to(dtype)
        expected = functional.linear(x.float(), weight, bias)
        made = matrix(x)
        assert made.dtype == dtype
        torch.testing.assert_close(made.float(), expected, atol=tolerance, rtol=tolerance)


def test_integers_of_four_bits_keep_the_ends_of_a_group() -> None:
    weight = torch.linspace(-2, 13, 16).repeat(16, 4)
    matrix = Int4Matrix(weight, None)
    identity = torch.eye(64).bfloat16()
    torch.testing.assert_close(matrix(identity).float(), weight.T, atol=0.05, rtol=0.01)


def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 176)
    matrix = matrix_maker("float32", CPU)(torch.randn(48, 176), None)
    whole = matrix(x)
    for rows in (1, 2, 3, 7, 33):
        assert torch.equal(matrix(x[:rows]), whole[:rows])


def test_unknown_and_impossible_layouts_are_named() -> None:
    with pytest.raises(ConfigError, match="weights: 'int5' is unknown.*'int4'|'int8'"):
        matrix_maker("int5", CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights: int8 needs a CPU"):
        matrix_maker("int8", torch.device("cuda"))
    for weights, group in (("int8", 16), ("int4", 32)):
        with pytest.raises(ConfigError, match=f"{weights} takes groups of {group} columns.*40"):
            matrix_maker(weights, CPU)(torch.randn(8, 40), None)  # type: ignore[arg-type]
