from typing import Any

from liquidmm.icons.concepts import normalize, plain_name, read_concepts, slug


def test_names_become_slugs_codes_and_plain_names(emoji: Any) -> None:
    assert slug("woman\u2019s hat") == "womans-hat"
    assert normalize("2764-fe0f-200d-1f525") == "2764-200D-1F525"
    assert plain_name("person: red hair") == "person with red hair"
    assert plain_name("automobile") == "car"
    table = read_concepts(*emoji)
    farmer = table.by_code["1F9D1-200D-1F33E"]
    assert farmer is not None
    assert farmer is table.by_code["1F468-200D-1F33E"]
    assert table.code(("redapple",), ()) == "1F34E"
    assert table.code(("pistol",), ("1F34E",)) is None
