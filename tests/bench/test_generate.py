"""`liquid bench generate`: all sides draw the same, and one result comes of it."""

import json

import pytest
import torch
from click.testing import CliRunner

from liquidmm.bench.generate import GenerateBench
from liquidmm.bench.generate_job import DrawJob
from liquidmm.bench.generate_ours import engine_of, picture_requests
from liquidmm.bench.generate_release import release_loop, static_generate
from liquidmm.bench.job import Shape
from liquidmm.cli import main
from liquidmm.errors import ConfigError
from liquidmm.generate.engine import EngineConfig
from liquidmm.model.checkpoint import Checkpoint

TINY = Shape(
    name="tiny",
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate=64,
    vocabulary=1100 + 8192,
    tied=True,
    micro_rows=1,
    length=128,
)


@pytest.fixture(params=["shape", "checkpoint"])
def job(request, checkpoint_folder) -> DrawJob:
    source = TINY if request.param == "shape" else checkpoint_folder
    return DrawJob(source=source, batch=3, codes=7, device="cpu", guidance=3.0, greedy=True)


def test_all_sides_draw_the_same_codes(job):
    model = job.language_model()
    released = torch.stack(list(release_loop(model, job)), dim=1)
    steps = []
    static_generate(model, job, steps.append)
    ours = engine_of(job, model, EngineConfig()).generate_codes(picture_requests(job, 0))
    assert released.tolist() == torch.stack(steps, dim=1).tolist()
    assert released.tolist() == torch.cat(ours).tolist()
    assert len({len(prompt) for prompt in job.prompts()[0]}) > 1


def test_what_a_step_reads_is_counted(job):
    model = job.language_model()
    config = model.config
    per_layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    weights = config.num_hidden_layers * per_layer + config.hidden_size
    head = job.vocabulary.codebook_size * config.hidden_size
    prompts, unconditional = job.prompts()
    positions = sum(map(len, prompts)) + 3 * len(unconditional) + 6 * 7 / 2
    layer = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert job.step_bytes() == 4 * (weights + head + layer * positions)


def test_weights_count_in_the_type_they_are_stored_in(checkpoint_folder, tmp_path):
    folder = Checkpoint.load(checkpoint_folder).save(tmp_path / "half", "bfloat16")
    whole, half = (
        DrawJob(source=source, batch=1, codes=4, device="cpu").step_bytes()
        for source in (checkpoint_folder, folder)
    )
    assert 1.7 < whole / half < 2


def test_json_has_every_figure(checkpoint_folder):
    result = CliRunner().invoke(
        main,
        ["bench", "generate", "--json", "--checkpoint", str(checkpoint_folder), "--seconds", "0.4",
         "--models", "default", "--batches", "1", "--codes", "6", "--requests", "100",
         "--best", "int8", "--device", "cpu"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"bench", "figures", "notes", "missing", "settings"}
    for name in (
        "default_ours_codes_per_second_b1",
        "default_release_codes_per_second_b1",
        "default_static_codes_per_second_b1",
        "default_best_codes_per_second_b1",
        "default_speedup_vs_release_b1_float32",
        "default_speedup_vs_static_b1_float32",
        "default_speedup_vs_release_b1_best",
        "default_roofline_share_b1",
        "default_memory_bandwidth_b1",
        "memory_after_50_requests",
        "memory_after_100_requests",
    ):
        assert found["figures"][name]["value"] > 0, name
        assert found["figures"][name]["unit"]
    assert abs(found["figures"]["memory_growth"]["value"]) < 20
    assert found["missing"] == {}
    assert found["settings"]["best"] == {"weights": "int8", "graphs": False}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"parts": ("sped",)}, "Did you mean 'speed'"),
        ({"models": ("2b",)}, "'2b' is unknown"),
        ({"seconds": 0.0}, "above 0"),
        ({"codes": 0}, "codes: must be at least 1"),
        ({"batches": (0,)}, "batches: must be"),
    ],
)
def test_bad_settings(values, words):
    with pytest.raises(ConfigError, match=words):
        GenerateBench(**values)


def test_batches_are_numbers():
    result = CliRunner().invoke(main, ["bench", "generate", "--batches", "1,b"])
    assert result.exit_code == 1
    assert "--batches: '1,b' holds what is no number" in result.stderr
