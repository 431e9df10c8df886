from __future__ import annotations

from typing import Any

import pytest
import torch

from liquidmm.errors import CheckpointError
from liquidmm.generate.decoders.by_hand import why_not
from liquidmm.generate.decoders.decoder import Decoder, context_of
from liquidmm.generate.decoders.family import FamilyDecoder
from liquidmm.generate.decoders.heads import FamilyHead
from liquidmm.generate.decoders.packed import PackedDecoder
from liquidmm.vocabulary import Vocabulary

PROMPTS = [[3, 7, 9, 11, 2, 30, 8, 21, 17, 33], [5, 6], [12, 13, 14, 15]]
NEXT = [7, 28, 9]


@torch.inference_mode()
def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """The logits of every position by the plain way: no cache, the whole head."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def read_prompts(decoder: Decoder) -> torch.Tensor:
    """Read all but the last id of each prompt; the next rows run together."""
    for row, prompt in enumerate(PROMPTS):
        decoder.forward(torch.tensor([prompt[:-1]]), torch.tensor([0]), row, len(prompt))
    return torch.tensor([len(prompt) - 1 for prompt in PROMPTS])


def test_rows_of_different_length_get_the_plain_logits(
    model: Any, decoders: list[Decoder], vocabulary: Vocabulary
) -> None:
    part = vocabulary.image_slice
    for decoder in decoders:
        starts = read_prompts(decoder)
        for step, feed in enumerate([[prompt[-1] for prompt in PROMPTS], NEXT]):
            hidden = decoder.forward(torch.tensor(feed)[:, None], starts + step, 0, 24)
            logits = decoder.logits(hidden[:, -1], part)
            for row, prompt in enumerate(PROMPTS):
                ids = prompt if step == 0 else [*prompt, NEXT[row]]
                expected = plain(model, ids)[-1, part]
                torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


def test_several_ids_at_once_and_a_row_in_the_middle(
    model: Any, decoders: list[Decoder], vocabulary: Vocabulary
) -> None:
    text = slice(0, vocabulary.text_size)
    for decoder in decoders:
        starts = read_prompts(decoder)
        ids = torch.tensor([[prompt[-1], *NEXT] for prompt in PROMPTS])
        hidden = decoder.forward(ids, starts, 0, 20)
        logits = decoder.logits(hidden.flatten(0, 1), text).view(3, 4, -1)
        decoder.copy(1, [3], 1)
        again = decoder.forward(ids[1:2], starts[1:2], 3, 5)
        logits_again = decoder.logits(again[0], text)
        for row, prompt in enumerate(PROMPTS):
            expected = plain(model, [*prompt, *NEXT])[len(prompt) - 1 :, text]
            torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logits_again, logits[1], atol=2e-5, rtol=1e-4)


def test_room_grows_without_loss(decoders: list[Decoder]) -> None:
    for decoder in decoders:
        starts = read_prompts(decoder)
        last = torch.tensor([prompt[-1] for prompt in PROMPTS])[:, None]
        before = decoder.forward(last, starts, 0, 12).clone()
        decoder.reserve(7, 99)
        assert torch.equal(decoder.forward(last, starts, 0, 12), before)


def test_heads_are_columns_of_the_full_head(model: Any, vocabulary: Vocabulary) -> None:
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        full = model(ids).logits[0]
        hidden = model.base_model(ids).last_hidden_state[0]
        for rows in (vocabulary.image_slice, slice(0, vocabulary.text_size)):
            part = FamilyHead(model, rows)(hidden)
            torch.testing.assert_close(part, full[:, rows], atol=1e-6, rtol=1e-5)
        assert model(ids).logits.shape[-1] == vocabulary.size


def test_a_model_is_written_by_hand_or_told_why_not(model: Any, by_hand: bool) -> None:
    assert (why_not(model) is None) == by_hand


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mistral sliding", {}, "sliding window"),
        ("gemma2", {}, "family 'gemma2'"),
        ("llama", {"hidden_act": "relu"}, "activation is 'relu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "of the kind 'dynamic'",
        ),
    ],
)
def test_why_not(make: Any, family: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in str(why_not(make(family, **changes)))


def test_adapted_and_half_precision_models_are_left_to_their_own_code(make: Any) -> None:
    model = make("llama")
    model.half()
    assert "torch.float16" in str(why_not(model))
    model = make("llama")
    layer = model.model.layers[1].mlp
    layer.up_proj = torch.nn.Sequential(layer.up_proj)
    assert "adapted, quantized or sharded" in str(why_not(model))


def test_layers_without_a_cache_of_their_own_are_refused(make: Any) -> None:
    model = make("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(CheckpointError, match="layers are of the kind linear_attention"):
        FamilyDecoder(model)


def test_the_context_is_the_models(llama: Any) -> None:
    assert context_of(llama) == 64


def test_weights_held_once_leave_the_model_as_it_was(make: Any) -> None:
    model = make("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = plain(model, PROMPTS[0])
    decoder = PackedDecoder(model, torch.float32)
    mlp = model.model.layers[0].mlp
    storage = mlp.gate_proj.weight.untyped_storage().data_ptr()
    assert mlp.up_proj.weight.untyped_storage().data_ptr() == storage
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(plain(model, PROMPTS[0]), expected, atol=1e-6, rtol=1e-6)
    decoder.reserve(1, 16)
    hidden = decoder.forward(torch.tensor([PROMPTS[0]]), torch.tensor([0]), 0, 10)[0]
    torch.testing.assert_close(decoder.logits(hidden, slice(0, 68)), expected, atol=2e-5, rtol=1e-4)
