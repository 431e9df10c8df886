from __future__ import annotations

import resource
import signal

import pytest
import torch

from liquidmm.errors import CheckpointError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.checkpoint import (
    Checkpointer,
    TrainState,
    latest_checkpoint,
    read_state,
    restore,
    write_final,
)
from liquidmm.train.distributed import Distributed
from liquidmm.train.optim import OptimConfig, build_optimizers


class Trained:
    """A model that took one step, and its optimizers."""

    def __init__(self, folder, kind: str) -> None:
        self.kind = kind
        self.checkpoint = Checkpoint.load(folder, "cpu", "float32")
        self.named = dict(self.checkpoint.model.named_parameters())
        self.optimizers = self.fresh_optimizers()
        torch.manual_seed(7)
        self.step()

    def fresh_optimizers(self, kind: str | None = None):
        config = OptimConfig(lr=0.01, optimizer=kind or self.kind)
        return build_optimizers(self.checkpoint.model, config)

    def step(self) -> None:
        for parameter in self.named.values():
            parameter.grad = torch.randn_like(parameter)
        for optimizer in self.optimizers:
            optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        states = {
            f"{number}/{parameter}/{kind}": value
            for number, optimizer in enumerate(self.optimizers)
            for parameter, state in optimizer.state_dict()["state"].items()
            for kind, value in state.items()
        }
        both = states | {name: parameter.detach() for name, parameter in self.named.items()}
        return {name: tensor.clone() for name, tensor in both.items()}


@pytest.fixture(params=["adamw", "muon"])
def trained(checkpoint_folder, request) -> Trained:
    return Trained(checkpoint_folder, request.param)


def state(step: int) -> TrainState:
    data = {"streams": {"0": [3, 1]}}
    return TrainState(step=step, data=data, config={"seed": 0}, loss_spikes={"mean": 2.5})


def save(out, trained: Trained, step: int = 1, keep: int = 2):
    checkpointer = Checkpointer(out, keep, Distributed("cpu"))
    folder = checkpointer.start(trained.named, trained.optimizers, state(step))
    checkpointer.finish()
    return folder


def test_restored_tensors_equal_saved_ones(trained, tmp_path):
    folder = save(tmp_path, trained)
    assert latest_checkpoint(tmp_path) == folder
    assert read_state(folder) == state(1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    before = trained.tensors()
    trained.step()
    trained.optimizers = trained.fresh_optimizers()
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    after = trained.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_during_writing_do_not_change_the_checkpoint(trained, tmp_path):
    checkpointer = Checkpointer(tmp_path, 2, Distributed("cpu"))
    before = trained.tensors()
    folder = checkpointer.start(trained.named, trained.optimizers, state(1))
    trained.step()  # while it is being written
    checkpointer.finish()
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    after = trained.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_checkpoint_appears_only_when_complete(trained, tmp_path):
    checkpointer = Checkpointer(tmp_path, 2, Distributed("cpu"))
    checkpointer.start(trained.named, trained.optimizers, state(1))
    assert latest_checkpoint(tmp_path) is None
    while latest_checkpoint(tmp_path) is None:
        checkpointer.poll()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpointer.poll()  # nothing is pending


def test_only_the_last_checkpoints_kept(trained, tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, trained, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000010"]
    assert latest_checkpoint(tmp_path).name == "step-00000010"


def test_remains_of_a_killed_run_removed(trained, tmp_path):
    remains = tmp_path / "checkpoints" / ".step-00000001"
    remains.mkdir(parents=True)
    (remains / "shard-00009-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    folder = save(tmp_path, trained)
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    assert not remains.exists()


def test_full_disk_leaves_the_previous_checkpoint(trained, tmp_path):
    save(tmp_path, trained, 1)
    # A limit on the file size replaces a full disk: the same system call fails.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(LiquidError, match=r"step-00000002: .*written \(.*again"):
            save(tmp_path, trained, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    restore(latest_checkpoint(tmp_path), trained.named, trained.optimizers, Distributed("cpu"))


def test_final_model_replaces_an_older_one(trained, tmp_path):
    for card in ("first", "second"):
        folder = write_final(tmp_path, trained.checkpoint, card, "bfloat16")
    assert (folder / "README.md").read_text() == "second"
    assert Checkpoint.load(folder, "cpu").vocabulary == trained.checkpoint.vocabulary


def test_missing_folder_has_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{}", '{"step": 1'])
def test_damaged_state_rejected(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read"):
        read_state(tmp_path)


def test_damaged_shard_rejected(trained, tmp_path):
    folder = save(tmp_path, trained)
    next(folder.glob("shard-*")).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"step-00000001: cannot be read .*Remove"):
        restore(folder, trained.named, trained.fresh_optimizers(), Distributed("cpu"))


def test_checkpoint_of_another_model_rejected(trained, tmp_path):
    folder = save(tmp_path, trained)
    trained.named["model.more.weight"] = torch.nn.Parameter(torch.ones(3))
    trained.optimizers[0].add_param_group({"params": [trained.named["model.more.weight"]]})
    with pytest.raises(CheckpointError, match=r"model/model\.more\.weight"):
        restore(folder, trained.named, trained.optimizers, Distributed("cpu"))


def test_weight_of_another_shape_rejected(trained, tmp_path):
    folder = save(tmp_path, trained)
    norm = trained.checkpoint.model.model.norm
    norm.weight = torch.nn.Parameter(torch.ones(3))
    named = dict(trained.checkpoint.model.named_parameters())
    with pytest.raises(CheckpointError, match=r"step-00000001: cannot be read .*norm\.weight"):
        restore(folder, named, trained.fresh_optimizers(), Distributed("cpu"))


def test_checkpoint_of_another_optimizer_rejected(trained, tmp_path):
    folder = save(tmp_path, trained)
    other = "muon" if trained.kind == "adamw" else "adamw"
    with pytest.raises(CheckpointError, match=r"optimizer/.*optim\.optimizer"):
        restore(folder, trained.named, trained.fresh_optimizers(other), Distributed("cpu"))


def test_checkpoints_of_an_earlier_version_rejected(trained, tmp_path):
    (tmp_path / "saves" / "step-00000004").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="saves.*earlier version"):
        latest_checkpoint(tmp_path)
    folder = save(tmp_path, trained)
    assert latest_checkpoint(tmp_path) == folder
