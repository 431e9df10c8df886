from __future__ import annotations

from typing import Any

import pytest
import torch

from liquidmm.errors import CheckpointError
from liquidmm.generate.backends import Backend, context_length
from liquidmm.generate.backends.hf import OutputHead, TransformersBackend
from liquidmm.generate.backends.llama import unsupported_reason
from liquidmm.generate.backends.pytorch import TorchBackend
from liquidmm.vocabulary import Vocabulary

PROMPTS = [[3, 7, 9, 11, 2, 30, 8, 21, 17, 33], [5, 6], [12, 13, 14, 15]]
NEXT = [7, 28, 9]


@torch.inference_mode()
def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logits of every position, without a cache and with the whole head."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def prefill(backend: Backend) -> torch.Tensor:
    """Feed all but the last token of each prompt; return the lengths."""
    for slot, prompt in enumerate(PROMPTS):
        backend.forward(torch.tensor([prompt[:-1]]), torch.tensor([0]), slot, len(prompt))
    return torch.tensor([len(prompt) - 1 for prompt in PROMPTS])


def test_slots_of_different_length_get_plain_logits(
    model: Any, backends: list[Backend], vocabulary: Vocabulary
) -> None:
    part = vocabulary.image_slice
    for backend in backends:
        starts = prefill(backend)
        for step, feed in enumerate([[prompt[-1] for prompt in PROMPTS], NEXT]):
            hidden = backend.forward(torch.tensor(feed)[:, None], starts + step, 0, 24)
            logits = backend.logits(hidden[:, -1], part)
            for row, prompt in enumerate(PROMPTS):
                ids = prompt if step == 0 else [*prompt, NEXT[row]]
                expected = plain(model, ids)[-1, part]
                torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


def test_several_tokens_at_once_and_copied_slot(
    model: Any, backends: list[Backend], vocabulary: Vocabulary
) -> None:
    text = slice(0, vocabulary.text_size)
    for backend in backends:
        starts = prefill(backend)
        ids = torch.tensor([[prompt[-1], *NEXT] for prompt in PROMPTS])
        hidden = backend.forward(ids, starts, 0, 20)
        logits = backend.logits(hidden.flatten(0, 1), text).view(3, 4, -1)
        backend.copy(1, [3], 1)
        again = backend.forward(ids[1:2], starts[1:2], 3, 5)
        logits_again = backend.logits(again[0], text)
        for row, prompt in enumerate(PROMPTS):
            expected = plain(model, [*prompt, *NEXT])[len(prompt) - 1 :, text]
            torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logits_again, logits[1], atol=2e-5, rtol=1e-4)


def test_cache_grows_without_loss(backends: list[Backend]) -> None:
    for backend in backends:
        starts = prefill(backend)
        last = torch.tensor([prompt[-1] for prompt in PROMPTS])[:, None]
        before = backend.forward(last, starts, 0, 12).clone()
        backend.reserve(7, 99)
        assert torch.equal(backend.forward(last, starts, 0, 12), before)


def test_output_head_equals_columns_of_full_head(model: Any, vocabulary: Vocabulary) -> None:
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        full = model(ids).logits[0]
        hidden = model.base_model(ids).last_hidden_state[0]
        for rows in (vocabulary.image_slice, slice(0, vocabulary.text_size)):
            part = OutputHead(model, rows)(hidden)
            torch.testing.assert_close(part, full[:, rows], atol=1e-6, rtol=1e-5)
        assert model(ids).logits.shape[-1] == vocabulary.size


def test_unsupported_reason_of_each_family(model: Any, llama_like: bool) -> None:
    assert (unsupported_reason(model) is None) == llama_like


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mistral sliding", {}, "sliding-window"),
        ("gemma2", {}, "family 'gemma2'"),
        ("llama", {"hidden_act": "relu"}, "activation is 'relu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is 'dynamic'",
        ),
    ],
)
def test_unsupported_reason_names_the_value(
    make: Any, family: str, changes: dict[str, Any], reason: str
) -> None:
    assert reason in str(unsupported_reason(make(family, **changes)))


def test_adapted_and_float16_models_are_unsupported(make: Any) -> None:
    model = make("llama")
    model.half()
    assert "torch.float16" in str(unsupported_reason(model))
    model = make("llama")
    layer = model.model.layers[1].mlp
    layer.up_proj = torch.nn.Sequential(layer.up_proj)
    assert "adapted, quantized or sharded" in str(unsupported_reason(model))


def test_unknown_layer_type_raises(make: Any) -> None:
    model = make("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(CheckpointError, match="layers of type linear_attention"):
        TransformersBackend(model)


def test_context_length_of_config(llama: Any) -> None:
    assert context_length(llama) == 64


def test_torch_backend_shares_weights_with_unchanged_model(make: Any) -> None:
    model = make("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = plain(model, PROMPTS[0])
    backend = TorchBackend(model)
    mlp = model.model.layers[0].mlp
    storage = mlp.gate_proj.weight.untyped_storage().data_ptr()
    assert mlp.up_proj.weight.untyped_storage().data_ptr() == storage
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(plain(model, PROMPTS[0]), expected, atol=1e-6, rtol=1e-6)
    backend.reserve(1, 16)
    hidden = backend.forward(torch.tensor([PROMPTS[0]]), torch.tensor([0]), 0, 10)[0]
    torch.testing.assert_close(backend.logits(hidden, slice(0, 68)), expected, atol=2e-5, rtol=1e-4)
