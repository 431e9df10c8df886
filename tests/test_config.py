from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from annotated_types import Ge, Gt, Le

from liquidmm.config import from_dict, load_run, to_dict
from liquidmm.errors import ConfigError
from liquidmm.ranges import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    RENAMED: ClassVar[Mapping[str, str]] = {"beta": "betas"}

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr: expected a number above 0, got {self.lr}. Try 1e-4.")
        if self.betas[0] > self.betas[1]:
            raise ValueError("the betas are in the wrong order.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    count: Annotated[int, Ge(1)] = 1
    share: Annotated[float, Ge(0), Le(1)] = 0.5
    scale: float = 1.0
    limit: Annotated[int, Ge(0)] | None = None
    sizes: tuple[Annotated[int, Gt(0)], ...] = (8,)

    def __post_init__(self) -> None:
        check_ranges(self)


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


def test_from_dict_builds_nested_dataclasses():
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


def test_to_dict_round_trips_through_json():
    assert from_dict(Run, {"steps": 1}, "x") == Run(steps=1)
    run = from_dict(Run, FULL, "run.toml")
    plain = json.loads(json.dumps(to_dict(run)))
    assert plain["sources"][0] == {"path": "shards/a", "weight": 1.0}
    assert plain["size"] == [64, 96]
    assert from_dict(Run, plain, "saved") == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 1}, r"step: .*'steps'\?$"),
        ({"optimizer": {"lrr": 1}}, r"optimizer\.lrr: .*'lr'\?$"),
        ({"sources": [{"path": "a"}, {}]}, r"sources\.1\.path: missing.*--set"),
        ({"steps": True}, r"steps: .*integer.*True"),
        ({"steps": 1.0}, r"steps: .*integer.*1\.0"),
        ({"optimizer": {"lr": "1e-5"}}, r"optimizer\.lr: .*number.*'1e-5'"),
        ({"optimizer": {"fused": 1}}, r"optimizer\.fused: .*true or false.*1"),
        ({"optimizer": 3}, r"optimizer: .*table.*3"),
        ({"optimizer": {"betas": [1]}}, r"optimizer\.betas: .*2.*1"),
        ({"names": "a"}, r"names: .*list.*'a'"),
        ({"names": ["a", 1]}, r"names\.1: .*string.*1"),
        ({"limits": {"x": "y"}}, r"limits\.x: .*integer.*'y'"),
        ({"size": "big"}, r"size: .*integer or a list.*'big'"),
        ({"precision": "bfloat"}, r"precision: .*'float32', 'bfloat16'.*'bfloat'.*'bfloat16'\?$"),
        ({"optimizer": {"lr": -1}}, r"optimizer\.lr: .*above 0.*-1\.0"),
        ({"optimizer": {"beta": [0, 1]}}, r"optimizer\.beta: .*'betas'\.$"),
        ({"optimizer": {"betas": [0.9, 0.5]}}, r"optimizer: the betas are in the wrong order"),
    ],
)
def test_from_dict_invalid_value_names_key_and_value(change, message):
    with pytest.raises(ConfigError, match=rf"^run\.toml: {message}"):
        from_dict(Run, {"steps": 1, **change}, "run.toml")


def test_from_dict_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"^x: steps: missing"):
        from_dict(Run, {}, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, r"^count: .*at least 1.*0"),
        ({"share": 1.5}, r"^share: .*at least 0.*at most 1.*1\.5"),
        ({"share": float("nan")}, r"^share: .*nan"),
        ({"scale": float("inf")}, r"^scale: .*finite.*inf"),
        ({"limit": -1}, r"^limit: .*at least 0.*-1"),
        ({"sizes": (8, 0)}, r"^sizes: .*above 0.*\(8, 0\)"),
    ],
)
def test_check_ranges_names_field_and_value(values, message):
    with pytest.raises(ConfigError, match=message):
        Ranges(**values)


def test_check_ranges_accepts_bounds_and_none():
    assert Ranges(count=1, share=1.0, limit=None, sizes=()).share == 1.0


def test_load_run_applies_overrides(tmp_path):
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
    ("override", "message"),
    [
        ("steps", r"^--set steps: .*key=value"),
        ("=1", r"^--set =1: .*key=value"),
        ("a..b=1", r"^--set a\.\.b=1: .*key=value"),
        ("steps.x=1", r"^--set steps\.x=1: 'x'.*table"),
        ("steps.x.y=1", r"^--set steps\.x\.y=1: 'x'.*table"),
        ("names.4=x", r"^--set names\.4=x: .*0 to 0.*'4'"),
        ("sources.0=x", r"^--set sources\.0=x: .*empty list.*'0'"),
        ("stepps=1", r"stepps: .*'steps'\?$"),
        ("steps=1\nprecision='bfloat16'", r"steps: .*integer"),
    ],
)
def test_load_run_invalid_override_is_named(tmp_path, override, message):
    file = tmp_path / "run.toml"
    file.write_text('steps = 3\nnames = ["a"]\nsources = []\n')
    with pytest.raises(ConfigError, match=message):
        load_run(Run, file, [override])


def test_load_run_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: .*\(No such file"):
        load_run(Run, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml: .*TOML.*line 1"):
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


def test_extends_merges_tables_and_replaces_other_values(tmp_path):
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
    # the extended file remains a complete run file
    assert load_run(Run, tmp_path / "parent.toml").names == ("a", "b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"run": 'extends = "none.toml"'},
            r"^{0}/run\.toml: extends: {0}/none\.toml .*\(No such file or directory\)\..* {0}\.$",
        ),
        (
            {"run": 'extends = "a.toml"', "a": 'extends = "none.toml"'},
            r"^{0}/a\.toml: extends: {0}/none\.toml .*\(No such file or directory\)\..* {0}\.$",
        ),
        (
            {"run": 'extends = "run.toml"'},
            r"^{0}/run\.toml: extends: .*: {0}/run\.toml -> {0}/run\.toml\.",
        ),
        (
            {"run": 'extends = "a.toml"', "a": 'extends = "./run.toml"'},
            r"^{0}/a\.toml: extends: .*: {0}/run\.toml -> {0}/a\.toml -> {0}/run\.toml\.",
        ),
        ({"run": "extends = 3"}, r"^{0}/run\.toml: extends: .*path.*3"),
        ({"run": 'extends = "a.toml"', "a": "steps = x"}, r"^{0}/a\.toml: .*line 1, column 9"),
        ({"run": 'extends = "a.toml"', "a": "stepps = 1"}, r"^{0}/run\.toml: stepps: .*'steps'\?$"),
        (
            {"run": "steps = 1\n[optimizer]\nextends = 'a.toml'"},
            r"^{0}/run\.toml: optimizer\.extends: unknown key",
        ),
    ],
)
def test_extends_invalid_value_is_named(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ConfigError, match=message.replace("{0}", str(tmp_path))) as caught:
        load_run(Run, tmp_path / "run.toml")
    assert "\n" not in str(caught.value)


def test_extends_in_override_or_dict_is_unknown(tmp_path):
    write(tmp_path, parent=PARENT, run="steps = 1")
    with pytest.raises(ConfigError, match=r"run\.toml: extends: unknown key"):
        load_run(Run, tmp_path / "run.toml", ["extends=parent.toml"])
    with pytest.raises(ConfigError, match=r"^x: extends: unknown key"):
        from_dict(Run, {"steps": 1, "extends": "parent.toml"}, "x")
