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


def test_sizes():
    assert VOCABULARY.size == 112
    assert VOCABULARY.image_slice == slice(104, 112)


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_codes_to_ids_and_back(make):
    codes = make([[0, 1, 7], [3, 3, 0]])
    ids = VOCABULARY.to_ids(codes)
    assert ids.tolist() == [[104, 105, 111], [107, 107, 104]]
    assert VOCABULARY.to_codes(ids).tolist() == codes.tolist()
    assert VOCABULARY.is_image(make([103, 104, 111, 112, 7])).tolist() == [
        *(False, True, True),
        *(False, False),
    ]


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_a_wrong_id_or_code_is_named_and_never_clamped(make):
    with pytest.raises(DataError, match=r"id 112 at position 2 is no image id \(104 to 111\)"):
        VOCABULARY.to_codes(make([[104, 111], [112, 7]]))
    with pytest.raises(DataError, match="id 8 at position 0"):
        VOCABULARY.to_codes(make([8]))
    with pytest.raises(DataError, match=r"code 8 at position 1 is no image code \(0 to 7\)"):
        VOCABULARY.to_ids(make([0, 8]))
    with pytest.raises(ValueError, match="code -1"):
        VOCABULARY.to_ids(make([-1]))


def test_nothing_is_fine():
    assert VOCABULARY.to_codes(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_round_trip_through_a_dict():
    assert VOCABULARY.to_dict() == FIELDS
    assert Vocabulary.from_dict(VOCABULARY.to_dict()) == VOCABULARY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"image_offset": 99}, "text_size is 100, image_offset 99"),
        ({"boi": 100}, r"\(100, 8, 9\)"),
        ({"boi": 8}, "three different"),
        ({"eoi": -1}, "three different"),
    ],
)
def test_a_layout_that_cannot_be(change, words):
    with pytest.raises(CheckpointError, match=words):
        Vocabulary(**{**FIELDS, **change})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, r"f\.json: the vocabulary has the fields \[\]"),
        ({**FIELDS, "extra": 1}, "'extra'"),
        ({**FIELDS, "boi": "7"}, r"f\.json: boi is '7'"),
        ({**FIELDS, "boi": True}, "boi is True"),
    ],
)
def test_a_dict_that_is_no_layout(data, words):
    with pytest.raises(CheckpointError, match=words):
        Vocabulary.from_dict(data, "f.json")
