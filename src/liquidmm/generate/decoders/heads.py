"""The head of any causal language model, restricted to the ids that may be drawn.

Contract: what a family does behind its decoder (soft-capping, scaling, a bias) is done by the
family's own code, so a restricted head gives exactly the columns of the full one. Nothing is copied
and the model isn't changed.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class FamilyHead:
    """Logits from the last hidden states, for one range of ids."""

    def __init__(self, model: PreTrainedModel, rows: slice) -> None:
        """Make a view of the model that shares its weights.

        Args:
            model: A causal language model with a linear head, tied or not, with or without bias.
            rows: Ids to compute; column i is id ``rows.start + i``.
        """
        full = cast("nn.Linear", model.get_output_embeddings())  # type: ignore[no-untyped-call]
        weight = full.weight.detach()[rows]
        biased = full.bias is not None
        # Made on "meta" so that no second weight is allocated before the shared one is put in.
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        if biased:
            head.bias = nn.Parameter(full.bias.detach()[rows], requires_grad=False)
        self._given = _Given()
        self._view = copy.copy(model)
        self._view._modules = {**model._modules, model.base_model_prefix: self._given}
        self._view.set_output_embeddings(head)  # type: ignore[no-untyped-call]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map hidden states (N, D) to logits (N, V)."""
        self._given.hidden = hidden[:, None]
        # The ids are read by nobody: what they would become is given.
        ids = torch.empty(hidden.shape[0], 1, dtype=torch.long, device="meta")
        logits = self._view(input_ids=ids, use_cache=False).logits[:, -1]
        return cast("Tensor", logits)


class _Given(nn.Module):
    """Stands where the decoder stands and returns hidden states that are there already."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=cast("Any", self.hidden))
