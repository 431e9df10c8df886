from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from liquidmm.cli.init import InitRunConfig
from liquidmm.config import load_run
from liquidmm.encode import EncodeConfig
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig
from liquidmm.train.config import TrainConfig

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PAPER = RECIPES / "paper"
# Files that others build on; they lack a checkpoint and can't run by themselves.
PARTS = sorted(PAPER.glob("parts/*.toml"))
FILES = sorted(set(RECIPES.rglob("*.toml")) - set(PARTS))

GEMMA = 64
SCALING = {"llama-3.2-1b": 8, "gemma-2-2b": 16, "gemma-2-9b": 64, "gemma-2-27b": 128}
QWEN = {"0.5b": 8, "1.5b": 8, "3b": 16, "7b": 64, "14b": 64, "32b": 128}
SMALL = ("llama-3.2-1b-", "gemma-2-2b-", "qwen2.5-0.5b-", "qwen2.5-1.5b-", "qwen2.5-3b-")
# File -> suggested ranks, steps, rows of a step, schedule.
RUNS: dict[str, tuple[int, int, int, str]] = {
    "gemma-7b-pretrain": (GEMMA, 58_594, 1024, "cosine"),
    "gemma-7b-tune": (GEMMA, 3_418, 1024, "cosine"),
    "gemma-7b-boost-base": (GEMMA, 29_297, 1024, "cosine"),
    "gemma-7b-boost-t2i": (GEMMA, 39_063, 1024, "cosine"),
    "gemma-7b-boost-i2t": (GEMMA, 39_063, 1024, "cosine"),
    **{f"qwen2.5-{size}-pretrain": (n, 58_594, 1024, "cosine") for size, n in QWEN.items()},
    **{f"{base}-mixed": (n, 117_188, 512, "constant") for base, n in SCALING.items()},
    **{f"{base}-text": (n, 58_594, 512, "constant") for base, n in SCALING.items()},
    **{f"{base}-image": (n, 58_594, 512, "constant") for base, n in SCALING.items()},
}
TEXT = {("dclm", "text"): 15, ("slimpajama", "text"): 12, ("starcoder", "text"): 3}
PAIRS = {("pairs", "text_to_image"): 24, ("pairs", "image_to_text"): 6}
THIRD = {("dclm", "text"): 5, ("slimpajama", "text"): 4, ("starcoder", "text"): 1}
SOURCES = {
    "gemma-7b-tune": {
        ("lmsys", "chat"): 1,
        ("pairs-best", "text_to_image"): 1,
        ("mini-gemini", "chat"): 1.5,
    },
    "gemma-7b-boost-base": THIRD | {("pairs", "text_to_image"): 10, ("pairs", "image_to_text"): 10},
    "gemma-7b-boost-t2i": THIRD | {("pairs", "text_to_image"): 20, ("pairs", "image_to_text"): 10},
    "gemma-7b-boost-i2t": THIRD | {("pairs", "text_to_image"): 10, ("pairs", "image_to_text"): 20},
    **{f"{base}-text": TEXT for base in SCALING},
    **{f"{base}-image": PAIRS for base in SCALING},
}


def schema_of(path: Path) -> Any:
    """Tell a run file's schema by the keys that only it has, in the file or those it builds on."""
    keys: set[str] = set()
    data: dict[str, Any] = {"extends": path.name}
    while name := data.get("extends"):
        path = path.parent / name
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        keys |= data.keys()
    if {"checkpoint", "train"} <= keys:
        return TrainConfig
    return next(
        schema
        for key, schema in (
            ("vqgan", TrainTokenizerConfig),
            ("texts", InitRunConfig),
            ("source", EncodeConfig),
        )
        if key in keys
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_every_recipe_is_valid(path):
    load_run(schema_of(path), path)


def test_all_kinds_are_there():
    names = [schema_of(path).__name__ for path in FILES]
    assert {"TrainConfig", "TrainTokenizerConfig", "InitRunConfig", "EncodeConfig"} == set(names)
    assert len(PARTS) == 4


def test_the_paper_has_these_runs():
    found = {path.stem for path in FILES if path.parent == PAPER and schema_of(path) is TrainConfig}
    assert found == RUNS.keys()
    readme = (PAPER / "README.md").read_text(encoding="utf-8")
    assert [name for name in RUNS if f"| `{name}.toml` |" not in readme] == []
    outs = {load_run(TrainConfig, PAPER / f"{name}.toml").out for name in RUNS}
    assert len(outs) == len(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_constants_of_the_paper(name):
    run = load_run(TrainConfig, PAPER / f"{name}.toml")
    ranks, steps, batch, schedule = RUNS[name]
    assert run.optim.lr == 2e-5
    assert run.optim.schedule == schedule
    assert run.optim.grad_clip == 0.5
    assert run.optim.max_z_loss == 2e-4
    assert run.optim.optimizer == "adamw"
    assert (run.optim.min_lr_ratio, run.optim.z_loss) == (0.0, 0.0)
    assert run.data.seq_len == 2048
    assert run.data.format.caption_dropout == 0.1
    assert (run.data.format.chat_format_prob, run.data.format.first_row_only_prob) == (0.0, 0.0)
    assert run.train.global_batch_size == batch
    assert run.train.steps == steps
    assert run.train.precision == "bfloat16"
    assert run.model.attn_implementation == "flex_attention"
    assert run.model.lora is None
    assert run.model.freeze == ()
    sources: dict[tuple[str, str], float] = {}
    for source in run.data.sources:
        turned = source.weight * source.swap_ratio
        sources[source.path.name, source.task] = source.weight - turned
        if turned:
            sources[source.path.name, "image_to_text"] = turned
    assert sources == SOURCES.get(name, TEXT | PAIRS)
    assert run.rows_of_rank(ranks) == batch // ranks
    # a text or a pair takes about one row, so the weights (millions) give the steps
    assert steps == -(-int(sum(sources.values()) * 1_000_000) // batch)


@pytest.mark.parametrize("name", RUNS)
def test_large_models_compute_activations_again(name):
    run = load_run(TrainConfig, PAPER / f"{name}.toml")
    small = name.startswith(SMALL)
    assert run.model.activation_checkpointing is not small
    assert run.parallel.reshard_after_forward is not small
    assert run.parallel.grad_accumulation == ("full" if small else "sharded")


def test_the_second_stage_starts_from_the_first():
    first = load_run(TrainConfig, PAPER / "gemma-7b-pretrain.toml")
    second = load_run(TrainConfig, PAPER / "gemma-7b-tune.toml")
    assert second.checkpoint == first.out / "final"
    more = load_run(TrainConfig, RECIPES / "icons" / "more.toml")
    assert more.checkpoint == load_run(TrainConfig, RECIPES / "icons" / "model.toml").out / "final"
    assert (more.optim.optimizer, more.optim.lr, more.train.steps) == ("muon", 1.2e-3, 6600)
