from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from liquidmm.errors import CheckpointError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.checkpoint import (
    Progress,
    latest,
    read_progress,
    restore,
    save,
    write_final,
)
from liquidmm.train.optim import OptimConfig, build_optimizers


@pytest.fixture(params=["adamw", "muon"])
def trained(checkpoint_folder, request):
    """A checkpoint that took one step, and its optimizers."""
    checkpoint = Checkpoint.load(checkpoint_folder, "cpu", "float32")
    optimizers = build_optimizers(checkpoint.model, OptimConfig(lr=0.01, matrices=request.param))
    torch.manual_seed(7)
    for parameter in checkpoint.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    return checkpoint, optimizers


def progress(step: int) -> Progress:
    return Progress(step=step, data={"draws": [3, 1]}, run={"seed": 0})


def states(optimizers) -> dict[str, torch.Tensor]:
    return {
        f"{number}/{parameter}/{kind}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for kind, value in state.items()
    }


def test_round_trip(trained, tmp_path):
    checkpoint, optimizers = trained
    folder = save(tmp_path, checkpoint, optimizers, progress(1), keep=2)
    expected = torch.rand(4)
    assert latest(tmp_path) == folder
    assert read_progress(folder) == progress(1)

    loaded = Checkpoint.load(folder / "model", "cpu", "float32")
    kind = "adamw" if len(optimizers) == 1 else "muon"
    fresh = build_optimizers(loaded.model, OptimConfig(lr=0.01, matrices=kind))
    restore(folder, loaded.model, fresh)
    assert torch.equal(torch.rand(4), expected)
    for old, new in zip(checkpoint.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(old, new)
    before, after = states(optimizers), states(fresh)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_last_are_kept(trained, tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, *trained, progress(step), keep=2)
    names = sorted(path.name for path in (tmp_path / "saves").iterdir())
    assert names == ["step-00000002", "step-00000010"]
    assert latest(tmp_path).name == "step-00000010"


def test_a_failed_save_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("liquidmm.train.checkpoint.save_file", full)
    with pytest.raises(Exception, match="No space left on device"):
        save(tmp_path, *trained, progress(1), keep=2)
    assert list((tmp_path / "saves").iterdir()) == []
    assert latest(tmp_path) is None


def test_final_replaces_an_older_one(trained, tmp_path):
    checkpoint, _ = trained
    for card in ("first", "second"):
        folder = write_final(tmp_path, checkpoint, card, "bfloat16")
    assert (folder / "README.md").read_text() == "second"
    assert Checkpoint.load(folder, "cpu").vocabulary == checkpoint.vocabulary


def test_no_saves(tmp_path):
    assert latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{}", '{"step": 1'])
def test_broken_state(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: can't be read"):
        read_progress(tmp_path)


def test_broken_optimizer(trained, tmp_path):
    checkpoint, optimizers = trained
    folder = save(tmp_path, checkpoint, optimizers, progress(1), keep=1)
    (folder / "optimizer.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: can't be read"):
        restore(folder, checkpoint.model, optimizers)


def test_the_optimizer_of_another_model(trained, tmp_path):
    checkpoint, optimizers = trained
    folder = save(tmp_path, checkpoint, optimizers, progress(1), keep=1)
    other = replace(checkpoint, images=None).model
    other.model.norm.weight = torch.nn.Parameter(torch.ones(3))
    kind = "adamw" if len(optimizers) == 1 else "muon"
    with pytest.raises(CheckpointError, match=r"no state for model\.norm\.weight"):
        restore(folder, other, build_optimizers(other, OptimConfig(matrices=kind)))


def test_the_state_of_another_optimizer(trained, tmp_path):
    checkpoint, optimizers = trained
    folder = save(tmp_path, checkpoint, optimizers, progress(1), keep=1)
    other = "muon" if len(optimizers) == 1 else "adamw"
    fresh = build_optimizers(checkpoint.model, OptimConfig(matrices=other))
    with pytest.raises(CheckpointError, match=r"q_proj.* optimizer needs .*optim\.matrices"):
        restore(folder, checkpoint.model, fresh)
