"""Tiny models of many families, with random weights large enough that tokens vary."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers

from liquidmm.generate.backends import Backend, BackendKind, make_backend
from liquidmm.generate.backends.cpu.ffi import find_library
from liquidmm.vocabulary import Vocabulary

COMPILED = not isinstance(find_library(), str)
"""Whether the C backend was compiled; `backends/test_cpu` fails if it should have been."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of the C backend on a machine without a compiler."""
    if "cpu" in item.nodeid and not COMPILED and shutil.which("cc") is None:
        pytest.skip("needs a C compiler at installation")


VOCABULARY = Vocabulary(
    text_size=40, image_offset=44, codebook_size=24, boi=3, eoi=4, unconditional=5
)
CONTEXT = 64

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama biased": (
        "LlamaForCausalLM",
        {"attention_bias": True, "mlp_bias": True, "hidden_size": 36, "intermediate_size": 50,
         "head_dim": 8},
    ),
    "llama odd heads": ("LlamaForCausalLM", {"head_dim": 10}),
    "llama long": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0,
                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 16}},
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mistral sliding": ("MistralForCausalLM", {"sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 2.0,
         "attn_logit_softcapping": 3.0, "attn_implementation": "eager"},
    ),
    "gemma3": ("Gemma3ForCausalLM", {"head_dim": 8, "sliding_window": 6}),
    "phi biased head": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "cohere scaled head": ("CohereForCausalLM", {"logit_scale": 0.3}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
}  # fmt: skip
"""Name -> class and what its configuration adds."""

LLAMA_LIKE = {
    name for name in FAMILIES if name.split()[0] in ("llama", "qwen2", "qwen3", "gemma")
} | {"mistral"}
"""Those that the "torch" backend runs."""
ODD = {"llama odd heads"}
"""Those of them that the "cpu" backend cannot run."""


def make_model(family: str, **changes: Any) -> Any:
    """Build one, in eval mode."""
    name, extra = FAMILIES[family]
    cls = getattr(transformers, name)
    shape = {
        "vocab_size": VOCABULARY.size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = cls(cls.config_class(**{**shape, **extra, **changes})).eval()
        with torch.no_grad():
            for part, weight in built.named_parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.3)
                elif part.endswith("bias"):
                    weight.normal_(std=0.5)
                else:
                    weight.add_(torch.rand_like(weight), alpha=0.3)
    return built


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(family: str) -> Any:
    """A model of each family."""
    return make_model(family)


@pytest.fixture(scope="session")
def llama_like(family: str) -> bool:
    """Whether the family is Llama-like."""
    return family in LLAMA_LIKE


@pytest.fixture(scope="session")
def kinds(family: str) -> list[BackendKind]:
    """The backends that run each family."""
    if family not in LLAMA_LIKE:
        return ["transformers"]
    kinds: list[BackendKind] = ["transformers", "torch"]
    return [*kinds, "cpu"] if COMPILED and family not in ODD else kinds


@pytest.fixture
def backends(model: Any, kinds: list[BackendKind]) -> list[Backend]:
    """The backends of each family, with four slots."""
    found = [make_backend(model, kind) for kind in kinds]
    for backend in found:
        backend.reserve(4, CONTEXT)
    return found


@pytest.fixture(scope="session")
def llama() -> Any:
    """A Llama with grouped-query attention and an untied head."""
    return make_model("llama")


@pytest.fixture
def make() -> Callable[..., Any]:
    """Build a model of a family, with changes of its configuration."""
    return make_model


@pytest.fixture
def vocabulary() -> Vocabulary:
    """The vocabulary of these models."""
    return VOCABULARY


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
