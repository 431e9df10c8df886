from __future__ import annotations

from typing import Any

import pytest
import torch

from liquidmm.errors import DataError
from liquidmm.generate.score import score

PROMPT = [1, 10, 11, 12]
ANSWERS = [[7], [7, 45, 60, 4], list(range(30))]


def test_scores_equal_log_probabilities_of_one_forward(model: Any) -> None:
    for found, answer in zip(score(model, 68, PROMPT, ANSWERS), ANSWERS, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPT + answer])).logits[0, len(PROMPT) - 1 : -1]
        expected = logits.log_softmax(dim=-1)[torch.arange(len(answer)), answer]
        assert found.log_probs == pytest.approx(expected.tolist(), abs=2e-4)
        assert found.total == pytest.approx(float(expected.sum()), abs=1e-3)
        assert found.is_greedy == (logits.argmax(dim=-1).tolist() == answer)


def test_greedy_answer_is_greedy(llama: Any) -> None:
    ids = llama.generate(torch.tensor([PROMPT]), max_new_tokens=5, do_sample=False)[0].tolist()
    [found, other] = score(llama, 68, PROMPT, [ids[4:], [*ids[4:-1], (ids[-1] + 1) % 68]])
    assert found.is_greedy
    assert not other.is_greedy
    assert found.total > other.total


def test_score_needs_a_prompt_token(llama: Any) -> None:
    assert len(score(llama, 68, [1], [[2, 3]])[0].log_probs) == 2
    assert score(llama, 68, [1], []) == []
    for prompt, answers in (([], [[1]]), ([1], [[2], []])):
        with pytest.raises(DataError, match="the prompt or an answer is empty"):
            score(llama, 68, prompt, answers)
    with pytest.raises(DataError, match=r"4 tokens and an answer of 61 .* 64 tokens"):
        score(llama, 68, PROMPT, [[1] * 61])
