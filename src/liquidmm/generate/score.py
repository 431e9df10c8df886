"""How likely a model finds given answers.

Contract: probabilities are those of training, over the whole vocabulary, image codes included, by
transformers' own forward. A prompt is read once for all of its answers.
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
from liquidmm.generate.decoders.decoder import context_of
from liquidmm.generate.decoders.heads import FamilyHead

_AT_ONCE = 128
"""Positions whose whole vocabulary is scored at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely a model finds an answer."""

    tokens: tuple[float, ...]
    """Natural logarithm of the probability of each of its ids."""
    likeliest: bool
    """Whether each of its ids is the likeliest where it stands."""

    @property
    def total(self) -> float:
        """Logarithm of the probability of the whole answer."""
        return sum(self.tokens)


@torch.inference_mode()
def score(
    model: PreTrainedModel, size: int, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[Score]:
    """Score answers to one prompt.

    Args:
        model: Causal language model in eval mode.
        size: Ids of its vocabulary.
        prompt: Ids before the answers, at least one.
        answers: Ids of each, at least one; codes may be among them.

    Returns:
        A score for each answer.

    Raises:
        DataError: Prompt or answer is empty, or both together don't fit the context.
    """
    context = context_of(model)
    longest = max(map(len, answers), default=0)
    if not prompt or not all(answers):
        raise DataError("score: the prompt or an answer is empty. Give text that can be scored.")
    if len(prompt) + longest > context:
        raise DataError(
            f"score: {len(prompt)} ids of the prompt and {longest} of an answer don't fit the "
            f"model's context of {context} ids. Shorten them."
        )
    head = FamilyHead(model, slice(0, size))
    read = DynamicCache(config=model.config)
    if len(prompt) > 1:
        _hidden(model, prompt[:-1], read)
    scores = []
    for answer in answers:
        hidden = _hidden(model, [prompt[-1], *answer[:-1]], copy.deepcopy(read))
        tokens: list[float] = []
        likeliest = True
        for start in range(0, len(answer), _AT_ONCE):
            part = head(hidden[start : start + _AT_ONCE]).float().log_softmax(dim=-1)
            wanted = torch.tensor(answer[start : start + _AT_ONCE], device=part.device)
            tokens += part.gather(-1, wanted[:, None])[:, 0].tolist()
            likeliest &= bool((part.argmax(dim=-1) == wanted).all())
        scores.append(Score(tokens=tuple(tokens), likeliest=likeliest))
    return scores


def _hidden(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache) -> Tensor:
    """Give the last hidden states of ids that follow what the cache holds, (T, D)."""
    tokens = torch.tensor([list(ids)], device=model.device)
    output = model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cast("Tensor", output.last_hidden_state[0])
