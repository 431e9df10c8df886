"""The decoder in C, beside transformers and beside itself."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from liquidmm.errors import ConfigError
from liquidmm.generate.decoders import library
from liquidmm.generate.decoders.choice import choose_decoder, make_decoder
from liquidmm.generate.decoders.decoder import Weights
from liquidmm.generate.decoders.library import find_library
from liquidmm.generate.decoders.native import NativeDecoder

PROMPT = [3, 7, 9, 11, 2, 30, 8, 21, 17, 33]


@torch.inference_mode()
def plain(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return logits


def read(decoder: Any, rows: int = 1) -> torch.Tensor:
    """Logits of the prompt, read in one pass into each of some rows."""
    decoder.reserve(rows, 16)
    ids, starts = torch.tensor([PROMPT] * rows), torch.zeros(rows, dtype=torch.int64)
    hidden = decoder.forward(ids, starts, 0, len(PROMPT))
    logits: torch.Tensor = decoder.logits(hidden.flatten(0, 1), slice(0, 68))
    return logits.view(rows, len(PROMPT), 68)


def test_the_library_is_there() -> None:
    assert isinstance(find_library(), ctypes.CDLL)


def test_other_processors_compute_the_same(make: Any, tmp_path: Path) -> None:
    """Without AVX2, as on ARM, and without OpenMP, as on macOS."""
    built = tmp_path / "decode.so"
    flags = ["-O2", "-std=gnu11", "-w", "-fPIC", "-shared", "-DLIQUID_SOURCE=0"]
    command = ["cc", *flags, str(library.SOURCES[0]), "-o", str(built), "-lm"]
    subprocess.run(command, check=True)
    plain_c = ctypes.CDLL(str(built))
    own = find_library()
    assert isinstance(own, ctypes.CDLL)
    for name in ("liquid_forward", "liquid_multiply"):
        getattr(plain_c, name).argtypes = getattr(own, name).argtypes
    for weights in get_args(Weights):
        for family in ("llama biased", "qwen3"):
            decoder = NativeDecoder(make(family), weights)
            expected = read(decoder)
            decoder._library = plain_c
            torch.testing.assert_close(read(decoder), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["native", "packed"])
@pytest.mark.parametrize("family", ["llama tied", "llama biased", "qwen3", "gemma"])
def test_narrow_weights_come_near(make: Any, family: str, kind: Any, weights: Any) -> None:
    if (kind, weights) == ("packed", "int8"):
        weights = "bfloat16"
    model = make(family)
    logits = read(make_decoder(model, weights, kind), 2).float()
    expected = plain(model)
    error = (logits[0] - expected).std() / expected.std()
    # Wild weights in few dimensions are far harder to round than a trained model's.
    assert error < {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12}[weights]
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_activations(make: Any, activation: str) -> None:
    model = make("llama", hidden_act=activation)
    torch.testing.assert_close(
        read(NativeDecoder(model, "float32"))[0], plain(model), atol=2e-5, rtol=1e-4
    )


def test_weights_of_sixteen_bits_are_held_as_such_and_lose_nothing(make: Any) -> None:
    model = make("qwen3")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    assert torch.equal(
        read(NativeDecoder(model, "float32")), read(NativeDecoder(model, "bfloat16"))
    )
    half = NativeDecoder(model, "float32")
    assert {matrix.kind for matrix in matrices(half)} == {library.KINDS[torch.bfloat16]}
    assert {matrix.kind for matrix in matrices(NativeDecoder(make("qwen3"), "float32"))} == {0}
    torch.testing.assert_close(read(half)[0], plain(model), atol=2e-5, rtol=1e-4)


def matrices(decoder: NativeDecoder) -> list[library.Matrix]:
    names = ("qkv", "output", "gate_up", "down")
    return [getattr(layer, name) for layer in decoder._layers for name in names]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("inputs", [32, 129, 300])
def test_products(make: Any, weights: Any, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    model = make("llama", hidden_size=32)
    head = model.lm_head
    head.weight = torch.nn.Parameter(torch.randn(outputs, inputs) / 8)
    decoder = NativeDecoder(model, weights)
    x = torch.randn(131, inputs)
    expected = functional.linear(x, head.weight)
    whole = decoder.logits(x, slice(0, outputs))
    error = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.06}[weights]
    torch.testing.assert_close(whole, expected, atol=error, rtol=error)
    for rows in (1, 2, 3, 64, 65):
        assert torch.equal(decoder.logits(x[:rows], slice(0, outputs)), whole[:rows])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_are_independent_bit_for_bit_with_any_number_of_threads(
    make: Any, threads: int
) -> None:
    model = make("llama", hidden_size=96, intermediate_size=200, num_hidden_layers=3)
    before = torch.get_num_threads()
    decoder = NativeDecoder(model, "float32")
    decoder.reserve(48, 64)
    prompts = torch.randint(0, 68, (48, 9), generator=torch.Generator().manual_seed(0))
    for row in range(48):
        decoder.forward(prompts[row : row + 1], torch.tensor([0]), row, 9)
    starts = torch.randint(2, 9, (48,), generator=torch.Generator().manual_seed(1))
    ids = prompts[:, -1:]
    alone = [decoder.forward(ids[r : r + 1], starts[r : r + 1], r, 32) for r in range(48)]
    one = torch.cat(alone)
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 17, 48):
            many = decoder.forward(ids[:rows], starts[:rows], 0, 64)
            assert torch.equal(many, one[:rows])
            logits = decoder.logits(many[:, 0], slice(44, 68))
            assert torch.equal(logits[:1], decoder.logits(one[:1, 0], slice(44, 68)))
    finally:
        torch.set_num_threads(before)


def test_without_the_library_pytorch_takes_over(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make("llama")
    assert choose_decoder(model) == "native"
    find_library.cache_clear()
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    try:
        assert "not compiled" in str(find_library())
        assert choose_decoder(model) == "packed"
        assert capsys.readouterr().err.count("several times slower") <= 1
    finally:
        find_library.cache_clear()


def test_a_library_of_another_source_and_an_old_cpu_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_library.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(library, "crc32", lambda _: 1)
            assert "another version" in str(find_library())
        monkeypatch.setattr(library, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        find_library.cache_clear()
        assert "no AVX2" in str(find_library())
    finally:
        find_library.cache_clear()


def test_heads_that_are_no_whole_vectors_are_told(make: Any) -> None:
    with pytest.raises(ConfigError, match="10 dimensions, which is no multiple of 8"):
        choose_decoder(make("llama odd heads"), kind="native")


def test_lengths_up_to_the_room_are_attended_to(make: Any) -> None:
    model = make("llama")
    decoder = NativeDecoder(model, "float32")
    decoder.reserve(1, 64)
    ids = torch.randint(0, 68, (1, 64), generator=torch.Generator().manual_seed(0))
    hidden = [decoder.forward(ids[:, at : at + 1], torch.tensor([at]), 0, 64) for at in range(64)]
    with torch.inference_mode():
        expected = model.base_model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(decoder.forward(ids, torch.tensor([0]), 0, 64), torch.cat(hidden, dim=1))
