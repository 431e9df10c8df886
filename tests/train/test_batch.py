from __future__ import annotations

import json

import torch
from safetensors import safe_open

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.train.batch import Batch, shift_labels


def batch() -> Batch:
    ids = torch.arange(12).reshape(3, 4)
    targets = ids.masked_fill(ids % 3 == 0, IGNORE_INDEX)
    return Batch(input_ids=ids, position_ids=ids % 4, targets=targets, task_ids=ids * 0)


def test_targets_end_with_their_document():
    labels = torch.tensor([[1, 2, 3, IGNORE_INDEX, 5, 6]])
    position_ids = torch.tensor([[0, 1, 0, 1, 2, 3]])
    assert shift_labels(labels, position_ids).tolist() == [
        [2, IGNORE_INDEX, IGNORE_INDEX, 5, 6, IGNORE_INDEX]
    ]


def test_split_keeps_every_sequence():
    parts = list(batch().split(2))
    assert [len(part.input_ids) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.targets for part in parts]), batch().targets)
    assert sum(int(part.num_targets) for part in parts) == int(batch().num_targets) == 8
    (only,) = batch().split(0)
    assert torch.equal(only.input_ids, batch().input_ids)


def test_saved_batch_contains_tensors_and_keys(tmp_path):
    batch().save(tmp_path / "failed" / "a.safetensors", [("a",), ("b", "c"), ()])
    with safe_open(tmp_path / "failed" / "a.safetensors", "pt") as file:
        assert set(file.keys()) == {"input_ids", "position_ids", "targets", "task_ids"}
        assert torch.equal(file.get_tensor("targets"), batch().targets)
        assert json.loads(file.metadata()["keys"]) == [["a"], ["b", "c"], []]
