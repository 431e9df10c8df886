from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from liquidmm.errors import MissingExtraError
from liquidmm.train.trackers import open_trackers


def events(folder) -> list[Event]:
    """Read event files as they are laid out: length, checksum, event, checksum."""
    found = []
    for path in sorted(folder.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            found.append(Event.FromString(data[place + 12 : place + 12 + size]))
            place += 16 + size
    return found


def test_tensorboard(tmp_path):
    assert RecordWriter
    (board,) = open_trackers((), tmp_path, 0, {})
    board.log(1, {"loss": 2.5, "lr": 0.5})
    board.close()
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert scalars == {(1, "loss"): 2.5, (1, "lr"): 0.5}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted(tmp_path, monkeypatch, capsys, name):
    calls = []

    def init(**given):
        sys.stdout.write("a greeting\n")
        calls.append(("init", given))

    module = SimpleNamespace(
        init=init,
        log=lambda figures, step: calls.append(("log", step, figures)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, name, module)
    board, hosted = open_trackers((name,), tmp_path / "icons" / "model", 3, {"seed": 1})
    board.close()
    hosted.log(4, {"loss": 2.5})
    hosted.close()
    given = {"project": "icons", "name": "model", "config": {"seed": 1}, "resume": "allow"}
    assert calls == [("init", given), ("log", 4, {"loss": 2.5}), ("finish",)]
    assert capsys.readouterr().out == ""  # stdout is for the result of a run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "liquidmm\[{name}\]"'):
        open_trackers((name,), tmp_path, 0, {})
