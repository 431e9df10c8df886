"""The C backend, compared with transformers and with itself."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from liquidmm.errors import ConfigError
from liquidmm.generate.backends import choose_backend, cpu, make_backend
from liquidmm.generate.backends.cpu import CpuBackend, ffi
from liquidmm.generate.backends.cpu.ffi import find_library, load_library

PROMPT = [3, 7, 9, 11, 2, 30, 8, 21, 17, 33]
VARIANTS = [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8")]


@torch.inference_mode()
def plain(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return logits


def prefill(backend: Any, slots: int = 1) -> torch.Tensor:
    """Return the logits of the prompt, fed at once to each of some slots."""
    backend.reserve(slots, 16)
    tokens, starts = torch.tensor([PROMPT] * slots), torch.zeros(slots, dtype=torch.int64)
    hidden = backend.forward(tokens, starts, 0, len(PROMPT))
    logits: torch.Tensor = backend.logits(hidden.flatten(0, 1), slice(0, 68))
    return logits.view(slots, len(PROMPT), 68)


def test_library_is_compiled() -> None:
    assert isinstance(find_library(), ctypes.CDLL)


def test_build_without_avx2_and_openmp_computes_the_same(make: Any, tmp_path: Path) -> None:
    """Without AVX2, as on ARM, and without OpenMP, as on macOS."""
    built = tmp_path / "llama.so"
    flags = ["-O2", "-std=gnu11", "-w", "-fPIC", "-shared", "-DLIQUID_SOURCE=0"]
    command = ["cc", *flags, str(ffi.SOURCES[0]), "-o", str(built), "-lm"]
    subprocess.run(command, check=True)
    plain_c = ctypes.CDLL(str(built))
    ffi.declare(plain_c)
    for dtype, quantize in VARIANTS:
        for family in ("llama biased", "qwen3"):
            model = make(family).to(dtype)
            expected = prefill(CpuBackend(model, quantize))
            found = prefill(CpuBackend(model, quantize, plain_c))
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "dtype", "quantize", "limit"),
    [
        ("cpu", torch.float32, None, 1e-5),
        ("cpu", torch.bfloat16, None, 0.06),
        ("cpu", torch.float32, "int8", 0.12),
        ("torch", torch.float32, None, 1e-5),
        ("torch", torch.bfloat16, None, 0.06),
    ],
)
@pytest.mark.parametrize("family", ["llama tied", "llama biased", "qwen3", "gemma"])
def test_narrow_weights_are_close(
    make: Any, family: str, kind: Any, dtype: Any, quantize: Any, limit: float
) -> None:
    model = make(family)
    expected = plain(model)
    logits = prefill(make_backend(model.to(dtype), kind, quantize), 2).float()
    # Large random weights in few dimensions are much harder to round than those of a trained model.
    assert (logits[0] - expected).std() / expected.std() < limit
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_activations(make: Any, activation: str) -> None:
    model = make("llama", hidden_act=activation)
    torch.testing.assert_close(prefill(CpuBackend(model))[0], plain(model), atol=2e-5, rtol=1e-4)


def test_bfloat16_values_are_stored_in_16_bits_without_loss(make: Any) -> None:
    model = make("qwen3")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    short = CpuBackend(model)
    assert {matrix.dtype for matrix in short.matrices} == {ffi.DTYPES[torch.bfloat16]}
    assert {matrix.dtype for matrix in CpuBackend(make("qwen3")).matrices} == {0}
    torch.testing.assert_close(prefill(short)[0], plain(model), atol=2e-5, rtol=1e-4)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    assert torch.equal(prefill(CpuBackend(model)), prefill(short))


@pytest.mark.parametrize(("dtype", "quantize"), VARIANTS)
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("inputs", [32, 129, 300])
def test_matmul(make: Any, dtype: torch.dtype, quantize: Any, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    model = make("llama", hidden_size=32)
    head = model.lm_head
    head.weight = torch.nn.Parameter(torch.randn(outputs, inputs) / 8)
    backend = CpuBackend(model.to(dtype), quantize)
    x = torch.randn(131, inputs)
    expected = functional.linear(x, head.weight.float())
    whole = backend.logits(x, slice(0, outputs))
    error = 0.06 if quantize else 1e-5
    torch.testing.assert_close(whole, expected, atol=error, rtol=error)
    for rows in (1, 2, 3, 64, 65):
        assert torch.equal(backend.logits(x[:rows], slice(0, outputs)), whole[:rows])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_slots_are_bitwise_independent_with_any_number_of_threads(make: Any, threads: int) -> None:
    model = make("llama", hidden_size=96, intermediate_size=200, num_hidden_layers=3)
    before = torch.get_num_threads()
    backend = CpuBackend(model)
    backend.reserve(48, 64)
    prompts = torch.randint(0, 68, (48, 9), generator=torch.Generator().manual_seed(0))
    for row in range(48):
        backend.forward(prompts[row : row + 1], torch.tensor([0]), row, 9)
    starts = torch.randint(2, 9, (48,), generator=torch.Generator().manual_seed(1))
    ids = prompts[:, -1:]
    alone = [backend.forward(ids[r : r + 1], starts[r : r + 1], r, 32) for r in range(48)]
    one = torch.cat(alone)
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 17, 48):
            many = backend.forward(ids[:rows], starts[:rows], 0, 64)
            assert torch.equal(many, one[:rows])
            logits = backend.logits(many[:, 0], slice(44, 68))
            assert torch.equal(logits[:1], backend.logits(one[:1, 0], slice(44, 68)))
    finally:
        torch.set_num_threads(before)


def test_missing_library_is_reported(tmp_path: Path) -> None:
    assert "not compiled" in str(load_library(tmp_path))


def test_torch_backend_without_library(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    assert choose_backend(model) == "cpu"
    monkeypatch.setattr(cpu, "find_library", lambda: "it was not compiled")
    assert choose_backend(model) == "torch"
    with pytest.raises(ConfigError, match="cpu: .*not compiled"):
        choose_backend(model, kind="cpu")


def test_library_of_other_sources_or_abi_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(ffi.__file__).parent
    changed = tmp_path / "llama.c"
    changed.write_text("int other;")
    assert "another version" in str(load_library(folder, (changed,)))
    assert "structures or constants" in str(load_library(folder, abi=(*ffi.ABI[:-1], 99)))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    if ffi.IS_X86:
        assert "no AVX2" in str(load_library(folder))


def test_head_dimension_not_a_multiple_of_lanes_raises(make: Any) -> None:
    with pytest.raises(ConfigError, match="head dimension is 10, not a multiple of 8"):
        choose_backend(make("llama odd heads"), kind="cpu")


def test_attention_up_to_reserved_length(make: Any) -> None:
    model = make("llama")
    backend = CpuBackend(model)
    backend.reserve(1, 64)
    ids = torch.randint(0, 68, (1, 64), generator=torch.Generator().manual_seed(0))
    hidden = [backend.forward(ids[:, at : at + 1], torch.tensor([at]), 0, 64) for at in range(64)]
    with torch.inference_mode():
        expected = model.base_model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(backend.forward(ids, torch.tensor([0]), 0, 64), torch.cat(hidden, dim=1))
