"""The decoder on packed sequences, and its head."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from liquidmm.data.examples import IGNORE_INDEX
from liquidmm.errors import CheckpointError
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.train.batch import Batch, shift_labels
from liquidmm.train.loss import LossConfig, next_token_loss
from liquidmm.train.model import head_of, hidden_states

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "sdpa",
}

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2"]
WITH_WINDOW = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)).eval()


def gemma2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = SHAPE | {"attn_implementation": "eager"}
    config = Gemma2Config(**shape, head_dim=8, final_logit_softcapping=0.2)
    return Gemma2ForCausalLM(config).eval()


def cohere() -> PreTrainedModel:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)).eval()


@pytest.mark.parametrize("build", [llama, qwen2, gemma, gemma2, cohere])
def test_loss_equals_that_of_the_stock_model(build):
    model = build()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :4] = IGNORE_INDEX
    position_ids = torch.arange(9).expand(2, 9)
    hidden = model.base_model(
        input_ids=ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    result = next_token_loss(
        hidden,
        head_of(model),
        shift_labels(labels, position_ids),
        torch.zeros_like(ids),
        LossConfig(chunk_logits=100),
        tasks=1,
    )
    expected = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(result.loss, expected, atol=1e-5, rtol=0)


def test_head_with_bias_rejected():
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    with pytest.raises(CheckpointError, match="PhiForCausalLM.*Linear"):
        head_of(PhiForCausalLM(PhiConfig(**shape)))


@pytest.mark.parametrize(
    ("family", "window"),
    [(family, None) for family in FAMILIES] + [(family, 3) for family in WITH_WINDOW],
)
def test_packed_documents_do_not_attend_to_each_other(family_base, family, window):
    config = AutoConfig.from_pretrained(family_base(family))
    if window is not None:
        config.sliding_window = window  # shorter than the documents
    model = AutoModelForCausalLM.from_pretrained(
        family_base(family), config=config, dtype=torch.float32
    ).train()
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(3)
    sizes = (5, 9, 4, 7, 11)
    documents = [torch.randint(0, vocabulary, (size,), generator=generator) for size in sizes]
    ids = torch.cat(documents).reshape(2, 18)  # the rows end with the third and the fifth document
    positions = torch.cat([torch.arange(size) for size in sizes]).reshape(2, 18)
    head = head_of(model).weight

    def logits(ids, positions):
        batch = Batch(input_ids=ids, position_ids=positions, targets=ids, task_ids=ids)
        return hidden_states(model, batch).flatten(0, 1) @ head.T

    with torch.no_grad():
        packed = logits(ids, positions)
        alone = [logits(one[None], torch.arange(len(one))[None]) for one in documents]
        # The stock forward pass with its own mask, as any other engine runs it.
        plain = [model(one[None], use_cache=False).logits[0] for one in documents]
    tolerance = 1e-5 * max(1.0, float(packed.abs().max()))
    torch.testing.assert_close(packed, torch.cat(alone), atol=tolerance, rtol=0)
    softcap = getattr(config, "final_logit_softcapping", None)
    capped = packed if softcap is None else softcap * torch.tanh(packed / softcap)
    torch.testing.assert_close(capped, torch.cat(plain), atol=tolerance, rtol=0)


def test_flash_attention_gets_a_single_sequence(checkpoint_folder, monkeypatch):
    model = Checkpoint.load(checkpoint_folder, "cpu").model
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 100, (3, 12), generator=generator)
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)], [*range(1), *range(11)]])
    batch = Batch(input_ids=ids, position_ids=positions, targets=ids, task_ids=ids)
    expected = hidden_states(model, batch)
    seen = []
    forward = model.base_model.forward

    def record(input_ids, position_ids, use_cache):
        seen.append(tuple(input_ids.shape))
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(model.base_model, "forward", record)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    found = hidden_states(model, batch)
    assert seen == [(1, 36)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
