"""Generation benchmarks: all candidates generate the same codes, and one tiny run of the script."""

from functools import partial

import pytest
import torch

from _harness import run_once
from _reference import reference_loop, static_generate
from _workloads import GenerationTask, Shape, llama
from generate import engine_of, image_requests, score_codes
from liquidmm.generate.engine import EngineConfig
from liquidmm.model.checkpoint import Checkpoint

TINY = Shape(
    name="tiny",
    config=llama(
        32,
        2,
        4,
        2,
        intermediate_size=64,
        vocab_size=1100 + 8192,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    ),
    micro_batch_size=1,
)


@pytest.fixture(params=["shape", "checkpoint"])
def task(request, checkpoint_folder):
    source = TINY if request.param == "shape" else checkpoint_folder
    return GenerationTask(
        source=source, batch_size=3, codes=7, device="cpu", guidance=3.0, greedy=True
    )


def test_candidates_generate_same_codes(task):
    model = task.language_model()
    reference = torch.stack(list(reference_loop(model, task)), dim=1)
    steps = []
    static_generate(model, task, steps.append)
    ours = engine_of(task, model, EngineConfig()).generate_codes(image_requests(task, 0))
    assert reference.tolist() == torch.stack(steps, dim=1).tolist()
    assert reference.tolist() == torch.cat(ours).tolist()
    assert len({len(prompt) for prompt in task.prompts()[0]}) > 1


@pytest.mark.slow  # starts processes
def test_score_codes_float32_agrees_with_itself(task):
    counts = run_once(partial(score_codes, task, EngineConfig()), "cpu").counts
    assert counts["agreement"] == 1
    assert counts["gap"] == 0


def test_step_bytes_counts_weights_and_cache(task):
    model = task.language_model()
    config = model.config
    per_layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    weights = config.num_hidden_layers * per_layer + config.hidden_size
    head = task.vocabulary.codebook_size * config.hidden_size
    prompts, unconditional = task.prompts()
    tokens = sum(map(len, prompts)) + 3 * len(unconditional) + 6 * 7 / 2
    cache = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert task.step_bytes() == 4 * (weights + head + cache * tokens)


def test_step_bytes_uses_stored_dtype(checkpoint_folder, tmp_path):
    folder = Checkpoint.load(checkpoint_folder).save(tmp_path / "half", "bfloat16")
    full, half = (
        GenerationTask(source=source, batch_size=1, codes=4, device="cpu").step_bytes()
        for source in (checkpoint_folder, folder)
    )
    assert 1.7 < full / half < 2


@pytest.mark.slow
def test_generate_script_json_has_every_figure(run_script, checkpoint_folder):
    found = run_script(
        "generate",
        *("--checkpoint", checkpoint_folder, "--models", "default", "--batches", 1),
        *("--seconds", 0.4, "--codes", 6, "--requests", 100, "--best", "none"),
        *("--device", "cpu"),
    )
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
        "default_step_bytes_b1",
        "memory_after_50_requests",
        "memory_after_100_requests",
    ):
        assert found["figures"][name]["value"] > 0, name
    assert found["figures"]["default_ours_code_agreement"]["value"] == 100
    assert found["figures"]["default_best_score_gap"]["value"] < 0.1
    assert abs(found["figures"]["memory_growth"]["value"]) < 20
    assert found["missing"] == {}
    assert found["settings"]["best"] == {"quantize": None, "cuda_graphs": False}
