from __future__ import annotations

import itertools
import re
import shlex
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
FILES = sorted(RECIPES.rglob("*.toml"))
README = (PAPER / "README.md").read_text(encoding="utf-8")
TABLE_ROW = re.compile(r"^\| `([^`]+)` .*\| `liquid train ([^`]+)` \|$", re.M)
# Run -> arguments of `liquid train`, from the table of the README.
COMMANDS = {name: shlex.split(arguments) for name, arguments in TABLE_ROW.findall(README)}
# The commands in its code blocks.
VARIANTS = [shlex.split(line) for line in re.findall(r"^liquid train (.+)$", README, re.M)]

GEMMA = 64
SCALING = {"llama-3.2-1b": 8, "gemma-2-2b": 16, "gemma-2-9b": 64, "gemma-2-27b": 128}
QWEN = {"0.5b": 8, "1.5b": 8, "3b": 16, "7b": 64, "14b": 64, "32b": 128}
SMALL = ("llama-3.2-1b-", "gemma-2-2b-", "qwen2.5-0.5b-", "qwen2.5-1.5b-", "qwen2.5-3b-")
# Run -> suggested number of GPUs, steps, global batch size, schedule.
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


def load_command(arguments: list[str]) -> TrainConfig:
    """Load the config of a command of the README: a file, and overrides after --set."""
    path, *options = arguments
    assert set(options[::2]) <= {"--set"}
    return load_run(TrainConfig, ROOT / path, options[1::2])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_recipe_is_valid(path):
    load_run(schema_of(path), path)


def test_recipes_of_every_kind_exist():
    names = [schema_of(path).__name__ for path in FILES]
    assert {"TrainConfig", "TrainTokenizerConfig", "InitRunConfig", "EncodeConfig"} == set(names)


def test_readme_has_a_command_for_every_run_of_the_paper():
    assert COMMANDS.keys() == RUNS.keys()
    for name, arguments in COMMANDS.items():
        assert load_command(arguments).out == Path("runs/paper") / name


def test_readme_has_the_suggested_number_of_gpus():
    rows = dict(re.findall(r"^\| `([^`]+)` (?:\|[^|]*){3}\| (\d+) \|", README, re.M))
    assert {name: int(count) for name, count in rows.items()} == {
        name: run[0] for name, run in RUNS.items()
    }


@pytest.mark.parametrize(
    "arguments", [line for line in VARIANTS if "--dry-run" not in line], ids=" ".join
)
def test_variant_of_the_readme_is_valid(arguments):
    load_command(arguments)


@pytest.mark.parametrize("name", RUNS)
def test_run_has_the_constants_of_the_paper(name):
    run = load_command(COMMANDS[name])
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
        if not source.weight:
            continue
        swapped = source.weight * source.swap_ratio
        sources[source.path.name, source.task] = source.weight - swapped
        if swapped:
            sources[source.path.name, "image_to_text"] = swapped
    assert sources == SOURCES.get(name, TEXT | PAIRS)
    assert run.batch_size_per_rank(ranks) == batch // ranks
    # A text or a pair fills about one sequence, so the weights (millions) give the steps.
    assert steps == -(-int(sum(sources.values()) * 1_000_000) // batch)


@pytest.mark.parametrize("name", RUNS)
def test_only_large_models_save_memory(name):
    run = load_command(COMMANDS[name])
    small = name.startswith(SMALL)
    assert run.model.activation_checkpointing is not small
    assert run.parallel.reshard_after_forward is not small
    assert run.parallel.grad_accumulation == ("full" if small else "sharded")


@pytest.mark.parametrize("name", RUNS)
def test_run_starts_from_its_own_base(name):
    base = name.rpartition("-boost-")[0] or name.rpartition("-")[0]
    expected = "gemma-7b-pretrain/final" if name == "gemma-7b-tune" else f"{base}-liquid"
    assert load_command(COMMANDS[name]).checkpoint == Path("runs/paper") / expected


def test_stages_start_from_the_previous_one():
    stages = [
        load_run(TrainConfig, RECIPES / "icons" / f"{name}.toml")
        for name in ("model", "more", "answers", "cooldown")
    ]
    for before, after in itertools.pairwise(stages):
        assert after.checkpoint == before.out / "final"
    more = stages[1]
    assert (more.optim.optimizer, more.optim.lr, more.train.steps) == ("muon", 1.2e-3, 6600)
