"""What is checked before weights are loaded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from liquidmm.config import from_dict
from liquidmm.data.samples import Sample
from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.train.config import TrainConfig
from liquidmm.train.setup import check_image_sizes, check_length, open_setup


def run_of(plan, **tables) -> TrainConfig:
    for table, values in tables.items():
        plan[table] = plan.get(table, {}) | values
    return from_dict(TrainConfig, plan, "run.toml")


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_shards) -> Path:
    """Shards that contain a single image with a caption."""
    codes = np.zeros((4, 4), dtype=np.uint16)
    sample = Sample(kind="image_text", key="a", captions=("a",), image_codes=(codes,))
    return write_shards(tmp_path_factory.mktemp("images"), [sample])


def test_document_longer_than_the_context_rejected(plan):
    run = run_of(plan)
    config = LlamaConfig(max_position_embeddings=96)
    check_length(run, config)
    config.max_position_embeddings = 95
    check_length(run_of(deepcopy(plan), data={"max_document_tokens": 95}), config)
    with pytest.raises(ConfigError, match=r"data\.seq_len.*96.*95"):
        check_length(run, config)


def test_image_larger_than_a_document_rejected(plan, images):
    sources = [{"path": str(images), "task": "image_to_text"}]
    check_image_sizes(run_of(plan, data={"sources": sources, "eval": [], "seq_len": 19}))
    with pytest.raises(DataError, match=r"data\.sources\.0.*4 x 4.*19.*18"):
        check_image_sizes(run_of(plan, data={"seq_len": 18}))
    plan["data"]["sources"] = [{"path": str(images), "task": "text"}]  # ignores the image
    with pytest.raises(DataError, match=r"data\.eval\.0"):
        check_image_sizes(run_of(plan, data={"eval": sources}))


def test_files_of_another_checkpoint_rejected(plan, tmp_path, base_folder, write_shards, samples):
    other = write_shards(tmp_path / "other", samples, "another")
    plan["data"]["eval"] = [{"path": str(other), "task": "text_to_image"}]
    with pytest.raises(DataError, match="another"):
        open_setup(run_of(plan), 1, torch.device("cpu"))
    plan["checkpoint"] = str(base_folder)
    with pytest.raises(CheckpointError, match="liquid expand"):
        open_setup(run_of(plan), 1, torch.device("cpu"))
