from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from liquidmm.config import from_dict, load_run, to_dict
from liquidmm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr: must be above 0 ({self.lr}). Try 1e-4.")
        if self.betas[0] > self.betas[1]:
            raise ValueError("the betas are the wrong way round.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    steps: int
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    size: int | tuple[int, int] = 64
    names: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    extra: Any = None
    optimizer: Optimizer = Optimizer()
    sources: tuple[Part, ...] = ()


FULL = {
    "steps": 10,
    "precision": "bfloat16",
    "device": "cpu",
    "size": [64, 96],
    "names": ["a", "b"],
    "limits": {"x": 1},
    "optimizer": {"lr": 1, "betas": [0.5, 0.9]},
    "sources": [{"path": "shards/a"}, {"path": "/b", "weight": 2}],
}


def test_builds_nested_dataclasses():
    run = from_dict(Run, FULL, "run.toml")
    assert run == Run(
        steps=10,
        precision="bfloat16",
        device="cpu",
        size=(64, 96),
        names=("a", "b"),
        limits={"x": 1},
        optimizer=Optimizer(lr=1.0, betas=(0.5, 0.9)),
        sources=(Part(path=Path("shards/a")), Part(path=Path("/b"), weight=2.0)),
    )
    assert isinstance(run.optimizer.lr, float)
    assert isinstance(run.sources[1].weight, float)


def test_defaults_and_json_round_trip():
    assert from_dict(Run, {"steps": 1}, "x") == Run(steps=1)
    run = from_dict(Run, FULL, "run.toml")
    plain = json.loads(json.dumps(to_dict(run)))
    assert plain["sources"][0] == {"path": "shards/a", "weight": 1.0}
    assert plain["size"] == [64, 96]
    assert from_dict(Run, plain, "saved") == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 1}, "run.toml: step: is an unknown key. Did you mean 'steps'?"),
        (
            {"optimizer": {"lrr": 1}},
            "run.toml: optimizer.lrr: is an unknown key. Did you mean 'lr'?",
        ),
        (
            {"sources": [{"path": "a"}, {}]},
            "run.toml: sources.1.path: is missing. Add it to the run file or give it with --set.",
        ),
        ({"steps": True}, "run.toml: steps: must be a whole number, not True."),
        ({"steps": 1.0}, "run.toml: steps: must be a whole number, not 1.0."),
        ({"optimizer": {"lr": "1e-5"}}, "run.toml: optimizer.lr: must be a number, not '1e-5'."),
        (
            {"optimizer": {"fused": 1}},
            "run.toml: optimizer.fused: must be true or false, not 1.",
        ),
        ({"optimizer": 3}, "run.toml: optimizer: must be a table, not 3."),
        ({"optimizer": {"betas": [1]}}, "run.toml: optimizer.betas: has 1 entries. Give 2."),
        ({"names": "a"}, "run.toml: names: must be a list, not 'a'."),
        ({"names": ["a", 1]}, "run.toml: names.1: must be a string, not 1."),
        ({"limits": {"x": "y"}}, "run.toml: limits.x: must be a whole number, not 'y'."),
        ({"size": "big"}, "run.toml: size: must be a whole number or a list, not 'big'."),
        (
            {"precision": "bfloat"},
            (
                "run.toml: precision: must be one of 'float32', 'bfloat16', not 'bfloat'."
                " Did you mean 'bfloat16'?"
            ),
        ),
        (
            {"optimizer": {"lr": -1}},
            "run.toml: optimizer.lr: must be above 0 (-1.0). Try 1e-4.",
        ),
        (
            {"optimizer": {"betas": [0.9, 0.5]}},
            "run.toml: optimizer: the betas are the wrong way round.",
        ),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, {"steps": 1, **change}, "run.toml")
    assert str(caught.value) == message


def test_missing_key():
    with pytest.raises(ConfigError, match=r"^x: steps: is missing\."):
        from_dict(Run, {}, "x")


def test_load_run_with_overrides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'steps = 3\n[optimizer]\nlr = 1e-3\n[[sources]]\npath = "a"\n[[sources]]\npath = "b"\n'
    )
    run = load_run(
        Run,
        file,
        [
            "steps=5",
            "optimizer.lr = 2e-5",
            "precision=bfloat16",
            "sources.1.weight=3",
            "sources.0.path=runs/x y",
            "names=['p', 'q']",
            "device=a=b",
            "limits.n=4",
        ],
    )
    assert run.steps == 5
    assert run.optimizer.lr == 2e-5
    assert run.precision == "bfloat16"
    assert run.sources == (Part(path=Path("runs/x y")), Part(path=Path("b"), weight=3.0))
    assert run.names == ("p", "q")
    assert run.device == "a=b"
    assert run.limits == {"n": 4}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "--set steps: has no key and value"),
        ("=1", "--set =1: has no key and value"),
        ("a..b=1", "--set a..b=1: has no key and value"),
        ("steps.x=1", "'x' would lie below a value that is no table"),
        ("steps.x.y=1", "'x' would lie below a value that is no table"),
        ("names.4=x", "'4' is no place in a list of 1"),
        ("stepps=1", "stepps: is an unknown key. Did you mean 'steps'?"),
        ("steps=1\nprecision='bfloat16'", "steps: must be a whole number"),
    ],
)
def test_refuses_overrides(tmp_path, override, words):
    file = tmp_path / "run.toml"
    file.write_text('steps = 3\nnames = ["a"]\n')
    with pytest.raises(ConfigError) as caught:
        load_run(Run, file, [override])
    assert words in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: can't be read \(No such file"):
        load_run(Run, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml: is not valid TOML \(.*line 1"):
        load_run(Run, broken)


PARENT = """
steps = 3
size = [64, 96]
names = ["a", "b"]
limits = { x = 1, y = 2 }
[optimizer]
lr = 1e-3
fused = true
[[sources]]
path = "a"
[[sources]]
path = "b"
"""


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)


def test_extends_merges_tables_and_replaces_the_rest(tmp_path):
    write(tmp_path, parent=PARENT)
    write(
        tmp_path / "sub",
        child='extends = "../parent.toml"\nnames = ["c"]\nlimits.x = 5\n[optimizer]\nlr = 2e-5\n',
        grandchild='extends = "child.toml"\nsteps = 7\nsize = 32\n[[sources]]\npath = "c"\n',
    )
    grandchild = tmp_path / "sub" / "grandchild.toml"
    run = load_run(Run, grandchild)
    assert run == Run(
        steps=7,
        size=32,
        names=("c",),
        limits={"x": 5, "y": 2},
        optimizer=Optimizer(lr=2e-5, fused=True),
        sources=(Part(path=Path("c")),),
    )
    changed = load_run(Run, grandchild, ["optimizer.fused=false", "sources.0.weight=2"])
    assert changed.optimizer == Optimizer(lr=2e-5)
    assert changed.sources[0].weight == 2.0
    # the file that is built on stays a run file of its own
    assert load_run(Run, tmp_path / "parent.toml").names == ("a", "b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"run": 'extends = "none.toml"'},
            (
                "{0}/run.toml: extends: {0}/none.toml can't be read (No such file or directory). "
                "Name a TOML file by its path from {0}."
            ),
        ),
        (
            {"run": 'extends = "a.toml"', "a": 'extends = "none.toml"'},
            (
                "{0}/a.toml: extends: {0}/none.toml can't be read (No such file or directory). "
                "Name a TOML file by its path from {0}."
            ),
        ),
        (
            {"run": 'extends = "run.toml"'},
            "{0}/run.toml: extends: goes round in a circle: {0}/run.toml -> {0}/run.toml. Cut it.",
        ),
        (
            {"run": 'extends = "a.toml"', "a": 'extends = "./run.toml"'},
            (
                "{0}/a.toml: extends: goes round in a circle: {0}/run.toml -> {0}/a.toml -> "
                "{0}/run.toml. Cut it."
            ),
        ),
        ({"run": "extends = 3"}, "{0}/run.toml: extends: must be a path, not 3."),
        (
            {"run": 'extends = "a.toml"', "a": "steps = x"},
            (
                "{0}/a.toml: is not valid TOML (Invalid value (at line 1, column 9)). "
                "Correct that line."
            ),
        ),
        (
            {"run": 'extends = "a.toml"', "a": "stepps = 1"},
            "{0}/run.toml: stepps: is an unknown key. Did you mean 'steps'?",
        ),
        (
            {"run": "steps = 1\n[optimizer]\nextends = 'a.toml'"},
            "{0}/run.toml: optimizer.extends: is an unknown key.",
        ),
    ],
)
def test_refuses_extends(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ConfigError) as caught:
        load_run(Run, tmp_path / "run.toml")
    assert str(caught.value).startswith(message.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_extends_is_no_setting(tmp_path):
    write(tmp_path, parent=PARENT, run="steps = 1")
    with pytest.raises(ConfigError, match=r"run\.toml: extends: is an unknown key"):
        load_run(Run, tmp_path / "run.toml", ["extends=parent.toml"])
    with pytest.raises(ConfigError, match=r"^x: extends: is an unknown key"):
        from_dict(Run, {"steps": 1, "extends": "parent.toml"}, "x")
