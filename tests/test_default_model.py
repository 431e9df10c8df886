"""The built-in model: it loads without network, is small and does each task once."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquidmm.generate.backends.cpu.ffi import find_library
from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.liquid import DEFAULT_MODEL, load
from liquidmm.generate.outputs import ImageRows, ImageStep
from liquidmm.generate.requests import ImageRequest
from liquidmm.generate.sampling import SamplingConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def liquid():
    return load(device="cpu")


def test_same_seed_generates_same_image(liquid):
    once, again, other = liquid.generate_images(["a red apple, noto style"] * 3, seeds=[1, 1, 2])
    assert once.size == (64, 64)
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != other.tobytes()
    assert once.tobytes() == liquid.generate_image("a red apple, noto style", seed=1).tobytes()


@pytest.mark.skipif(isinstance(find_library(), str), reason="needs the C backend")
def test_image_codes_are_these(liquid):
    """The same seed gives the same image in every version, bit for bit."""
    codes = liquid.generate_codes(["a red apple, noto style", "an octopus"], seeds=[0, 1])
    assert liquid.engine.backend_kind == "cpu"
    hashes = [hashlib.sha256(grid.numpy().tobytes()).hexdigest()[:16] for grid in codes]
    assert hashes == ["79fd35e03f65d300", "4c1a9ae73f50a8d3"]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_seed_result_same_in_batch_of_64_and_streamed(guidance):
    liquid = load(device="cpu", engine=EngineConfig(slots=128))
    sampling = SamplingConfig(guidance=guidance, temperature=1.0, top_k=1024, top_p=0.96)
    sequences = liquid.checkpoint.processor.sequences
    prompts = [
        tuple(sequences.text_to_image_prompt(text))
        for text in ("a red apple, noto style", "an octopus", "a house with a tree, twemoji style")
    ]
    requests = [
        ImageRequest(
            prompt=prompts[seed % 3], grid=(3, 4), sampling=sampling, seed=seed, preview_every=1
        )
        for seed in range(64)
    ]
    many = liquid.engine.generate_codes(requests)
    for seed in (0, 31, 63):
        events = [event for _, event in liquid.engine.run([requests[seed]])]
        [image] = [event for event in events if isinstance(event, ImageStep)]
        assert torch.equal(image.codes, many[seed])
        assert [len(event.codes) for event in events if isinstance(event, ImageRows)] == [1, 2]


def test_describe_ask_and_chat(liquid):
    image = ROOT / "examples" / "octopus.png"
    assert liquid.describe(image).strip()
    assert liquid.ask(image, "What is this?").strip()
    assert liquid.chat([{"role": "user", "content": "Hello!"}]).text.strip()


def test_transformers_loads_it(liquid):
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    vocabulary = liquid.checkpoint.vocabulary
    assert model.get_output_embeddings().weight.shape[0] == vocabulary.size
    assert tokenizer.convert_tokens_to_ids("<boi>") == vocabulary.boi


def test_files_stay_small():
    files = [file for file in DEFAULT_MODEL.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) < 45e6
    assert sum(file.stat().st_size for file in files) < 90e6


def test_saved_sampling_has_known_fields():
    settings = json.loads((DEFAULT_MODEL / "processor_config.json").read_text(encoding="utf-8"))
    assert set(settings["sampling"]) <= {"guidance", "temperature", "top_k", "top_p", "greedy"}
