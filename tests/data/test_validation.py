import pytest

from liquidmm.data.validation import describe, names, string, strings
from liquidmm.errors import DataError


def test_values_are_returned_unchanged():
    assert string({"a": " x\n"}, "a", "f:1") == " x\n"
    assert string({}, "a", "f:1", empty=True) == ""
    assert strings(["x", "y "], "a", "f:1") == ("x", "y ")
    assert strings([], "a", "f:1") == ()
    assert names({"b": 1, "a": 2}) == "a, b"
    assert describe("x" * 99) == "str '" + "x" * 59


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: string({}, "a", "f:1"),
            "f:1: 'a' must be a string (got nothing). Correct the record.",
        ),
        (
            lambda: string({"a": 3}, "a", "f:1"),
            "f:1: 'a' must be a string (got int 3). Correct the record.",
        ),
        (
            lambda: string({"a": " "}, "a", "f:1"),
            "f:1: 'a' is empty. Fill it in or drop the record.",
        ),
        (
            lambda: string({"a": "so \ud83d"}, "a", "f:1"),
            "f:1: 'a' contains half of a surrogate pair ('\\ud83d' at 3). Correct the record.",
        ),
        (
            lambda: strings(["x", 1], "a", "f:1"),
            "f:1: 'a' must be a list of strings (got list ['x', 1]). Correct the record.",
        ),
        (
            lambda: strings(["x", ""], "a", "f:1"),
            "f:1: 'a' contains an empty string. Fill it in or remove it.",
        ),
        (
            lambda: strings(["\udc00"], "a", "f:1"),
            "f:1: 'a' contains half of a surrogate pair ('\\udc00' at 0). Correct the record.",
        ),
    ],
)
def test_bad_value_error_names_key_and_value(call, message):
    with pytest.raises(DataError) as error:
        call()
    assert str(error.value) == message
