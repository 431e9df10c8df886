from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from liquidmm.generate.decode import Rows, decode, head_rows

TEXT, CODES = 40, 24
OFFSET = 44
SIZE = OFFSET + CODES
PROMPTS = [[3, 7, 9, 11, 2, 30], [5, 6], [12, 13, 14, 15]]
UNCONDITIONAL = [1, 2]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral sliding": ("MistralForCausalLM", {"sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 8}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "final_logit_softcapping": 2.0,
            "attn_implementation": "eager",
        },
    ),
    "gemma3": ("Gemma3ForCausalLM", {"head_dim": 8, "sliding_window": 6}),
    "phi biased head": ("PhiForCausalLM", {}),
    "cohere scaled head": ("CohereForCausalLM", {"logit_scale": 0.3}),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    name, extra = FAMILIES[request.param]
    cls = getattr(transformers, name)
    config = cls.config_class(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if name.startswith("Phi") else 2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **extra,
    )
    torch.manual_seed(0)
    built = cls(config).eval()
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
            elif name.endswith("bias"):
                weight.normal_(std=0.5)
    return built


def greedy(logits: Tensor, _: Tensor | None) -> Tensor:
    return logits.argmax(dim=-1)


@torch.inference_mode()
def last_logits(model: Any, ids: list[int]) -> Tensor:
    """The plain way: the whole sequence, no cache, the whole head."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("rows", [slice(0, TEXT), slice(OFFSET, SIZE)])
def test_head_rows_are_columns_of_the_full_head(model: Any, rows: slice) -> None:
    view = head_rows(model, rows)
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        full = model(ids).logits
        part = view(ids).logits
    torch.testing.assert_close(part, full[..., rows], atol=1e-6, rtol=1e-5)
    assert full.shape[-1] == SIZE
    weight = view.get_output_embeddings().weight
    whole = model.get_output_embeddings().weight
    assert weight.data_ptr() == whole.data_ptr() + rows.start * whole.shape[1] * 4


def test_text_equals_transformers_generate(model: Any) -> None:
    # Left padding by transformers itself; ids outside the text rows are suppressed there.
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    expected = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=list(range(TEXT, SIZE)),
    )[:, longest:]
    steps = decode(head_rows(model, slice(0, TEXT)), PROMPTS, greedy, steps=12)
    assert torch.stack(list(steps), dim=1).tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guided_codes_equal_the_plain_loop(model: Any, scale: float) -> None:
    expected = []
    for prompt in PROMPTS:
        drawn: list[int] = []
        for _ in range(10):
            with_prompt = last_logits(model, prompt + drawn)[OFFSET:]
            without = last_logits(model, UNCONDITIONAL + drawn)[OFFSET:]
            drawn.append(OFFSET + int((without + scale * (with_prompt - without)).argmax()))
        expected.append([token - OFFSET for token in drawn])

    def guided(conditional: Tensor, unconditional: Tensor | None) -> Tensor:
        if unconditional is None:
            return conditional.argmax(dim=-1)
        return (unconditional + scale * (conditional - unconditional)).argmax(dim=-1)

    steps = decode(
        head_rows(model, slice(OFFSET, SIZE)),
        PROMPTS,
        guided,
        steps=10,
        first_id=OFFSET,
        unconditional=None if scale == 1 else UNCONDITIONAL,
    )
    assert torch.stack(list(steps), dim=1).tolist() == expected


def test_padding_changes_no_logits(model: Any) -> None:
    together = Rows(model, PROMPTS, room=3)
    for row, prompt in enumerate(PROMPTS):
        alone = last_logits(model, prompt)
        torch.testing.assert_close(together.logits[row], alone, atol=1e-5, rtol=1e-4)


def test_only_as_many_steps_are_computed_as_are_asked_for(model: Any) -> None:
    calls = []
    view = head_rows(model, slice(0, TEXT))
    forward = view.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    view.forward = counted
    assert len(list(decode(view, PROMPTS, greedy, steps=4))) == 4
    assert calls == [(3, 6), (3, 1), (3, 1), (3, 1)]


def test_no_steps_draw_nothing() -> None:
    assert list(decode(None, PROMPTS, None, steps=0)) == []  # type: ignore[arg-type]
