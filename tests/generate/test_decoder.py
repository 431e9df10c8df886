from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from liquidmm.errors import CheckpointError
from liquidmm.generate import packed
from liquidmm.generate.decoder import Decoder, FamilyDecoder, context_of
from liquidmm.generate.heads import FamilyHead
from liquidmm.generate.matrices import PlainMatrix
from liquidmm.generate.packed import PackedDecoder, why_not
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


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama tied", "llama biased, odd sizes", "qwen3", "gemma"])
def test_narrow_weights_come_near(make: Any, family: str, weights: Any) -> None:
    if weights.startswith("int") and "odd" in family:
        pytest.skip("integers take groups of columns")
    model = make(family, **({} if "odd" in family else {"intermediate_size": 64}))
    decoder = PackedDecoder(model, weights)
    decoder.reserve(2, 16)
    hidden = decoder.forward(torch.tensor([PROMPTS[0], PROMPTS[0]]), torch.tensor([0, 0]), 0, 10)
    logits = decoder.logits(hidden[0], slice(0, 68)).float()
    expected = plain(model, PROMPTS[0])
    error = (logits - expected).std() / expected.std()
    # Wild weights in few dimensions are far harder to round than a trained model's.
    assert error < {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12, "int4": 0.8}[weights]
    assert torch.equal(hidden[0], hidden[1])


def test_plain_weights_are_held_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = plain(model, PROMPTS[0])
    maker = partial(PlainMatrix, dtype=torch.float32)
    monkeypatch.setattr(packed, "matrix_maker", lambda *_: maker)
    decoder = PackedDecoder(model, "float32")
    mlp = model.model.layers[0].mlp
    storage = mlp.gate_proj.weight.untyped_storage().data_ptr()
    assert mlp.up_proj.weight.untyped_storage().data_ptr() == storage
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(plain(model, PROMPTS[0]), expected, atol=1e-6, rtol=1e-6)
    decoder.reserve(1, 16)
    hidden = decoder.forward(torch.tensor([PROMPTS[0]]), torch.tensor([0]), 0, 10)[0]
    torch.testing.assert_close(decoder.logits(hidden, slice(0, 68)), expected, atol=2e-5, rtol=1e-4)


def test_rows_of_a_pass_are_independent_bit_for_bit(make: Any, one_thread: None) -> None:
    model = make("llama", hidden_size=96, intermediate_size=200, num_hidden_layers=3)
    decoder = PackedDecoder(model, "float32")
    decoder.reserve(48, 64)
    prompts = torch.randint(0, 68, (48, 9), generator=torch.Generator().manual_seed(0))
    for row in range(48):
        decoder.forward(prompts[row : row + 1], torch.tensor([0]), row, 9)
    starts = torch.randint(2, 9, (48,), generator=torch.Generator().manual_seed(1))
    ids = prompts[:, -1:]
    two = torch.cat([decoder.forward(ids[r : r + 2], starts[r : r + 2], r, 32)
                     for r in range(0, 48, 2)])  # fmt: skip
    for rows in (3, 8, 17, 48):
        many = decoder.forward(ids[:rows], starts[:rows], 0, 64)
        assert torch.equal(many, two[:rows])
        part = slice(44, 68)
        logits = decoder.logits(many[:, 0], part)
        assert torch.equal(logits[:2], decoder.logits(two[:2, 0], part))
        assert torch.equal(logits[:1], decoder.logits(two[:1, 0], part))
