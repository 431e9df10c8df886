"""Log-probabilities of given answers.

They match training: transformers' own forward computes them over the whole vocabulary, image codes
included. A prompt is processed once for all of its answers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from liquidmm.errors import DataError
from liquidmm.generate.backends import context_length
from liquidmm.generate.backends.hf import OutputHead

_AT_ONCE = 128
"""Number of positions whose logits are computed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely the model finds an answer."""

    log_probs: tuple[float, ...]
    """Natural logarithm of the probability of each token."""
    is_greedy: bool
    """Whether greedy generation would produce this answer."""

    @property
    def total(self) -> float:
        """Log-probability of the whole answer."""
        return sum(self.log_probs)


@torch.inference_mode()
def score(
    model: PreTrainedModel, size: int, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[Score]:
    """Score answers to one prompt.

    Args:
        model: Causal language model in eval mode.
        size: Number of tokens in its vocabulary.
        prompt: Tokens before the answers, at least one.
        answers: Tokens of each answer, at least one; they can include codes.

    Raises:
        DataError: The prompt or an answer is empty, or both together exceed the context.
    """
    context = context_length(model)
    longest = max(map(len, answers), default=0)
    if not prompt or not all(answers):
        raise DataError("score: the prompt or an answer is empty.")
    if len(prompt) + longest > context:
        raise DataError(
            f"score: a prompt of {len(prompt)} tokens and an answer of {longest} exceed the "
            f"model's context of {context} tokens. Shorten them."
        )
    head = OutputHead(model, slice(0, size))
    cache = DynamicCache(config=model.config)
    if len(prompt) > 1:
        _hidden(model, prompt[:-1], cache)
    scores = []
    for answer in answers:
        hidden = _hidden(model, [prompt[-1], *answer[:-1]], copy.deepcopy(cache))
        log_probs: list[float] = []
        is_greedy = True
        for start in range(0, len(answer), _AT_ONCE):
            part = head(hidden[start : start + _AT_ONCE]).float().log_softmax(dim=-1)
            tokens = torch.tensor(answer[start : start + _AT_ONCE], device=part.device)
            log_probs += part.gather(-1, tokens[:, None])[:, 0].tolist()
            is_greedy &= bool((part.argmax(dim=-1) == tokens).all())
        scores.append(Score(log_probs=tuple(log_probs), is_greedy=is_greedy))
    return scores


def _hidden(model: PreTrainedModel, tokens: Sequence[int], cache: DynamicCache) -> Tensor:
    """Return the last hidden states of tokens after the cached ones, (T, D)."""
    ids = torch.tensor([list(tokens)], device=model.device)
    output = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cast("Tensor", output.last_hidden_state[0])
