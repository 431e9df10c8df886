import io
import json
import tracemalloc

import pytest

from liquidmm.data.readers.json_array import array_items
from liquidmm.errors import DataError

AWKWARD = {
    "empty": "[]",
    "blank": " \n[ \t\r\n ]\n\n ",
    "nested": '[[[], [[1, [2]]]], {"a": {"b": [{"c": "]},["}]}}, []]',
    "brackets in strings": '["]", "[{", "\\"],[\\"", "\\\\", ",", {"]": "}"}]',
    "escapes": '["\\u0041\\n\\t\\/", "\\ud83d\\ude00", "\\\\ud83d", "\\ud83d\\u0041", "äß漢😀"]',
    "numbers": "[0, -1, 12345678901234567890123, 1.5, -2.25e-10, 1E5, 0.1234567890123456789]",
    "constants": "[null, true, false, NaN, Infinity, -Infinity]",
    "touching": '[1,"a",[],{},null,-Infinity,2]',
    "spread out": '[\n  1\n  ,\n  {\n    "a" :\t2\n  }\r\n  ,   "b"\n]\n',
    "long item": json.dumps(["x" * 300, {"y": ["z" * 40] * 20}, 1]),
    "mark": "\ufeff[1, 2]",
}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 17, 64, 2**20])
def test_array_items_any_block_size_equal_json_load(text, chunk):
    content = text.encode()
    found = list(array_items(io.BytesIO(content), "a.json", chunk))
    # repr, because NaN is not equal to itself
    expected = json.loads(text.removeprefix("\ufeff"))
    assert repr([item for _, item in found]) == repr(expected)
    for index, (place, _) in enumerate(found):
        rest = io.BytesIO(content[place:])
        later = array_items(rest, "a.json", chunk, first=index, start=place)
        # position 0 is the start of the array, never the first item
        assert index == 0 or repr(list(later)) == repr(found[index:])


ENDS = "the file ends before the array does"
BROKEN = {
    "empty file": ("", 0, ENDS),
    "no array": ('{"a": 1}', 0, "not valid JSON (Expecting the start of an array at byte 0)"),
    "open": ("[", 0, ENDS),
    "after an item": ('["a"', 1, ENDS),
    "after a comma": ('["a", ', 1, ENDS),
    "in a string": ('["a", "bcd', 1, ENDS),
    "in an object": ('["a", {"b": 1', 1, ENDS),
    "comma before the end": ("[1, 2, ]", 2, "not valid JSON (Expecting value at byte 7)"),
    "two commas": ("[1,, 2]", 1, "not valid JSON (Expecting value at byte 3)"),
    "no comma": ("[1 2]", 1, "not valid JSON (Expecting ',' or ']' at byte 3)"),
    "bare word": ("[1, yes, 2]", 1, "not valid JSON (Expecting value at byte 4)"),
    "single quotes": (
        "[{}, {'a': 1}]",
        1,
        "not valid JSON (Expecting property name enclosed in double quotes at byte 6)",
    ),
    "line break in a string": (
        '["a", "b\nc"]',
        1,
        "not valid JSON (Invalid control character at byte 8)",
    ),
    "unknown escape": (
        '["a", "\\x41 and so on and on"]',
        1,
        "not valid JSON (Invalid \\escape at byte 7)",
    ),
    "garbage behind": (
        "[1, 2] [3]",
        2,
        "not valid JSON (Text after the end of the array at byte 7)",
    ),
    "far from the end": (
        '["a", {"b" 1}, "' + "c" * 100 + '"]',
        1,
        "not valid JSON (Expecting ':' delimiter at byte 11)",
    ),
}


@pytest.mark.parametrize(("text", "index", "what"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_array_items_syntax_error_raised_after_good_items(text, index, what, chunk):
    items = array_items(io.BytesIO(text.encode()), "a.json", chunk)
    for _ in range(index):
        next(items)
    with pytest.raises(DataError) as error:
        next(items)
    assert str(error.value).startswith(f"a.json[{index}]: {what}. The rest of the file is lost")


def items_of(text):
    content = text if isinstance(text, bytes) else text.encode()
    return [item for _, item in array_items(io.BytesIO(content), "a.json")]


def test_array_items_limits_of_json_raised():
    with pytest.raises(DataError, match=r"^a\.json\[0\]: not valid JSON \(maximum recursion"):
        items_of("[" * 200_000)
    with pytest.raises(DataError, match=r"^a\.json\[1\]: not valid JSON \(Exceeds the limit"):
        items_of("[1, " + "9" * 5000 + "]")


def test_array_items_invalid_utf8_spoils_one_item():
    assert items_of(b'["a", "\xff", "b"]') == ["a", "\udcff", "b"]


def test_array_items_memory_independent_of_file_size(tmp_path):
    path = tmp_path / "a.json"
    item = json.dumps({"id": 1, "conversations": [{"from": "human", "value": "word " * 200}]})
    with path.open("w") as file:
        file.write("[" + ",\n".join([item] * 4000) + "]")
    assert path.stat().st_size > 4_000_000
    tracemalloc.start()
    with path.open("rb") as file:
        count = sum(1 for _ in array_items(file, "a.json", read_bytes=2**14))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000
    assert peak < 400_000
