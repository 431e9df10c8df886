"""The model that ships: it loads without network, is small, and does each thing once."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.load import DEFAULT_MODEL, load
from liquidmm.generate.requests import ImageRequest
from liquidmm.generate.sampling import SamplingConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def liquid():
    return load(device="cpu")


def test_the_same_seed_draws_the_same_picture(liquid):
    once, again, other = liquid.generate_images(["a red apple, noto style"] * 3, seeds=[1, 1, 2])
    assert once.size == (64, 64)
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != other.tobytes()
    assert once.tobytes() == liquid.draw("a red apple, noto style", seed=1).tobytes()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_draws_the_same_in_a_batch_of_64_and_streamed(guidance):
    liquid = load(device="cpu", engine=EngineConfig(rows=128))
    sampling = SamplingConfig(guidance=guidance, temperature=1.0, top_k=1024, top_p=0.96)
    sequences = liquid.checkpoint.processor.sequences
    prompts = [
        tuple(sequences.text_to_image_prompt(text))
        for text in ("a red apple, noto style", "an octopus", "a house with a tree, twemoji style")
    ]
    requests = [
        ImageRequest(
            prompt=prompts[seed % 3], grid=(3, 4), sampling=sampling, seed=seed, preview_rows=1
        )
        for seed in range(64)
    ]
    many = liquid.engine.pictures(requests)
    for seed in (0, 31, 63):
        *rows, picture, _ = liquid.engine.stream(requests[seed])
        assert torch.equal(picture.codes, many[seed])
        assert [len(step.codes) for step in rows] == [1, 2]


def test_it_reads_and_talks(liquid):
    picture = ROOT / "examples" / "octopus.png"
    assert liquid.describe(picture).strip()
    assert liquid.ask(picture, "What is this?").strip()
    assert liquid.chat([{"role": "user", "content": "Hello!"}]).text.strip()


def test_plain_transformers_loads_it(liquid):
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    vocabulary = liquid.checkpoint.vocabulary
    assert model.get_output_embeddings().weight.shape[0] == vocabulary.size
    assert tokenizer.convert_tokens_to_ids("<boi>") == vocabulary.boi


def test_files_stay_small():
    files = [file for file in DEFAULT_MODEL.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) < 45e6
    assert sum(file.stat().st_size for file in files) < 90e6


def test_its_sampling_is_its_own():
    settings = json.loads((DEFAULT_MODEL / "processor_config.json").read_text(encoding="utf-8"))
    assert set(settings["sampling"]) <= {"guidance", "temperature", "top_k", "top_p", "greedy"}
