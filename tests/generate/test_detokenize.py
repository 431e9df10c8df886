from __future__ import annotations

import pytest

from liquidmm.generate.detokenize import StopStrings


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("ree", "o t"), "one tw"),
        ("ababac", ("abac",), "ab"),
        ("one two", ("twos",), "one two"),
        ("one two", (), "one two"),
        ("aaaab", ("aab", "b"), "aa"),
        ("x", ("x",), ""),
        ("abcd", ("abcd", "bc"), "a"),
    ],
)
def test_text_ends_before_first_stop_string(
    text: str, stops: tuple[str, ...], expected: str, size: int
) -> None:
    filtered = StopStrings(stops)
    shown = "".join(filtered.add(text[i : i + size]) for i in range(0, len(text), size))
    assert filtered.hit == (expected != text)
    assert shown + filtered.flush() == expected


def test_only_possible_stop_string_is_held_back() -> None:
    filtered = StopStrings(["END", "\n\n"])
    assert [filtered.add(piece) for piece in ("a", "E", "N", "O", "\n", "b")] == [
        *("a", "", "", "ENO", "", "\nb")
    ]
