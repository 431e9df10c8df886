from __future__ import annotations

import resource
import signal

import pytest
import torch

from liquidmm.errors import CheckpointError, LiquidError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.checkpoint import Checkpointer, Progress, latest, read_progress, restore
from liquidmm.train.distributed import Distributed
from liquidmm.train.final import write_final
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


def progress(step: int) -> Progress:
    return Progress(step=step, data={"lanes": {"0": [3, 1]}}, run={"seed": 0}, watch={"mean": 2.5})


def save(out, trained: Trained, step: int = 1, keep: int = 2):
    saver = Checkpointer(out, keep, Distributed("cpu"))
    folder = saver.start(trained.named, trained.optimizers, progress(step))
    saver.finish()
    return folder


def test_round_trip(trained, tmp_path):
    folder = save(tmp_path, trained)
    assert latest(tmp_path) == folder
    assert read_progress(folder) == progress(1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    before = trained.tensors()
    trained.step()
    trained.optimizers = trained.fresh_optimizers()
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    after = trained.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_saved_is_what_was_there_at_the_start(trained, tmp_path):
    saver = Checkpointer(tmp_path, 2, Distributed("cpu"))
    before = trained.tensors()
    folder = saver.start(trained.named, trained.optimizers, progress(1))
    trained.step()  # while it is being written
    saver.finish()
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    after = trained.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_save_is_not_there_before_it_is_whole(trained, tmp_path):
    saver = Checkpointer(tmp_path, 2, Distributed("cpu"))
    saver.start(trained.named, trained.optimizers, progress(1))
    assert latest(tmp_path) is None
    while latest(tmp_path) is None:
        saver.poll()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    saver.poll()  # there is none any more


def test_only_the_last_are_kept(trained, tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, trained, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000010"]
    assert latest(tmp_path).name == "step-00000010"


def test_the_remains_of_a_killed_save_are_cleared(trained, tmp_path):
    remains = tmp_path / "checkpoints" / ".step-00000001"
    remains.mkdir(parents=True)
    (remains / "shard-00009-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert latest(tmp_path) is None
    folder = save(tmp_path, trained)
    restore(folder, trained.named, trained.optimizers, Distributed("cpu"))
    assert not remains.exists()


def test_a_full_disk_leaves_the_save_before(trained, tmp_path):
    save(tmp_path, trained, 1)
    # The limit on the size of a file stands in for a full disk: the same call of the system fails.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(LiquidError, match=r"step-00000002: can't be written \(.*Make room"):
            save(tmp_path, trained, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    restore(latest(tmp_path), trained.named, trained.optimizers, Distributed("cpu"))


def test_final_replaces_an_older_one(trained, tmp_path):
    for card in ("first", "second"):
        folder = write_final(tmp_path, trained.checkpoint, card, "bfloat16")
    assert (folder / "README.md").read_text() == "second"
    assert Checkpoint.load(folder, "cpu").vocabulary == trained.checkpoint.vocabulary


def test_no_saves(tmp_path):
    assert latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{}", '{"step": 1'])
def test_broken_state(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: can't be read"):
        read_progress(tmp_path)


def test_a_broken_shard(trained, tmp_path):
    folder = save(tmp_path, trained)
    next(folder.glob("shard-*")).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"step-00000001: can't be read .*Remove this save"):
        restore(folder, trained.named, trained.fresh_optimizers(), Distributed("cpu"))


def test_the_save_of_another_model(trained, tmp_path):
    folder = save(tmp_path, trained)
    trained.named["model.more.weight"] = torch.nn.Parameter(torch.ones(3))
    trained.optimizers[0].add_param_group({"params": [trained.named["model.more.weight"]]})
    with pytest.raises(CheckpointError, match=r"holds no model/model\.more\.weight"):
        restore(folder, trained.named, trained.optimizers, Distributed("cpu"))


def test_a_weight_of_another_shape(trained, tmp_path):
    folder = save(tmp_path, trained)
    norm = trained.checkpoint.model.model.norm
    norm.weight = torch.nn.Parameter(torch.ones(3))
    named = dict(trained.checkpoint.model.named_parameters())
    with pytest.raises(CheckpointError, match=r"step-00000001: can't be read .*norm\.weight"):
        restore(folder, named, trained.fresh_optimizers(), Distributed("cpu"))


def test_the_save_of_another_optimizer(trained, tmp_path):
    folder = save(tmp_path, trained)
    other = "muon" if trained.kind == "adamw" else "adamw"
    with pytest.raises(CheckpointError, match=r"holds no optimizer/.*optim\.optimizer"):
        restore(folder, trained.named, trained.fresh_optimizers(other), Distributed("cpu"))
