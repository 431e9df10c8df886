import numpy as np
import pytest
import torch

from liquidmm.errors import CheckpointError, DataError
from liquidmm.vocabulary import Vocabulary

FIELDS = {
    "text_size": 100,
    "image_offset": 104,
    "codebook_size": 8,
    "boi": 7,
    "eoi": 8,
    "unconditional": 9,
}
VOCABULARY = Vocabulary(**FIELDS)


def test_size_and_image_slice():
    assert VOCABULARY.size == 112
    assert VOCABULARY.image_slice == slice(104, 112)


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_codes_to_token_ids_and_back(make):
    codes = make([[0, 1, 7], [3, 3, 0]])
    token_ids = VOCABULARY.to_token_ids(codes)
    assert token_ids.tolist() == [[104, 105, 111], [107, 107, 104]]
    assert VOCABULARY.to_codes(token_ids).tolist() == codes.tolist()
    assert VOCABULARY.is_image(make([103, 104, 111, 112, 7])).tolist() == [
        *(False, True, True),
        *(False, False),
    ]


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_value_out_of_range_is_named_not_clamped(make):
    with pytest.raises(DataError, match=r"token id 112 at position 2 .*\(104 to 111\)"):
        VOCABULARY.to_codes(make([[104, 111], [112, 7]]))
    with pytest.raises(DataError, match="token id 8 at position 0"):
        VOCABULARY.to_codes(make([8]))
    with pytest.raises(DataError, match=r"code 8 at position 1 .*\(0 to 7\)"):
        VOCABULARY.to_token_ids(make([0, 8]))
    with pytest.raises(ValueError, match="code -1"):
        VOCABULARY.to_token_ids(make([-1]))


def test_to_codes_accepts_empty():
    assert VOCABULARY.to_codes(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_dict_round_trip():
    assert VOCABULARY.to_dict() == FIELDS
    assert Vocabulary.from_dict(VOCABULARY.to_dict()) == VOCABULARY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codebook_size": 0}, "codebook_size: .*0"),
        ({"image_offset": 99}, "text_size 100, image_offset 99"),
        ({"boi": 100}, r"\(100, 8, 9\)"),
        ({"boi": 8}, r"\(8, 8, 9\)"),
        ({"eoi": -1}, r"\(7, -1, 9\)"),
    ],
)
def test_vocabulary_invalid_values_rejected(change, words):
    with pytest.raises(CheckpointError, match=words):
        Vocabulary(**{**FIELDS, **change})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, r"f\.json: .*fields.*\[\]"),
        ({**FIELDS, "extra": 1}, "'extra'"),
        ({**FIELDS, "boi": "7"}, r"f\.json: .*boi: .*'7'"),
        ({**FIELDS, "boi": True}, "boi: .*True"),
    ],
)
def test_from_dict_invalid_fields_rejected(data, words):
    with pytest.raises(CheckpointError, match=words):
        Vocabulary.from_dict(data, "f.json")
