"""The language model step by step, on a preallocated key-value cache.

Contract: prompts of different length run as one left-padded batch; each row gets the logits it
would get alone. The head computes only the rows asked for: the image slice while codes are drawn,
the text rows while text is drawn. A guided picture is two rows of the batch, the conditional and
the unconditional one, that share every drawn id. Nothing here knows about seeds, pictures or words:
a `Pick` chooses, an iterator yields.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

Pick = Callable[[Tensor, Tensor | None], Tensor]
"""(conditional logits (B, V), unconditional logits (B, V) or None) -> drawn columns (B,), int64."""


def head_rows(model: PreTrainedModel, rows: slice) -> PreTrainedModel:
    """Return a view of ``model`` whose head computes only some ids.

    The view shares every weight with ``model`` and keeps its forward, hence also what a family does
    after the head (soft-capping, scaling). ``model`` itself is not changed.

    Args:
        model: A causal language model with a linear head, tied or not, with or without bias.
        rows: Ids to compute; column i of the view's logits is id ``rows.start + i``.

    Returns:
        The view; its head must not be trained.
    """
    full = cast("nn.Linear", model.get_output_embeddings())  # type: ignore[no-untyped-call]
    weight = full.weight.detach()[rows]
    # Made on "meta" so that no second weight is allocated before the shared one is put in.
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=full.bias is not None, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    if full.bias is not None:
        head.bias = nn.Parameter(full.bias.detach()[rows], requires_grad=False)
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    return view


class Rows:
    """A running batch: the cache, the mask of the padding, the positions and the newest logits."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        """Read the prompts.

        Args:
            model: The model, or a `head_rows` view of it, in eval mode.
            prompts: Ids of each row, none empty.
            room: Ids that will be fed afterwards, at most.
        """
        longest = max(len(prompt) for prompt in prompts)
        device = model.device
        padded = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.ones(len(prompts), longest + room, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt)
            padded[row, start:] = torch.tensor(prompt, dtype=torch.long)
            mask[row, :start] = 0
        positions = (mask[:, :longest].cumsum(dim=-1) - 1).clamp(min=0)
        self._model = model
        self._mask = mask.to(device)
        self._next = (positions[:, -1:] + 1).to(device)
        self._cache = StaticCache(config=model.config, max_cache_len=longest + room)
        self.logits = self._forward(padded.to(device), positions.to(device))
        """Scores of the next id, (B, V)."""

    def advance(self, ids: Tensor) -> None:
        """Feed one id per row, (B,), int64, and renew `logits`."""
        self.logits = self._forward(ids[:, None], self._next)
        self._next = self._next + 1

    @torch.inference_mode()
    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast("Tensor", output.logits[:, -1])


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    *,
    steps: int,
    first_id: int = 0,
    unconditional: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Draw ids for a batch of prompts, one per row and step.

    Args:
        model: The model or a `head_rows` view of it, in eval mode.
        prompts: Ids of the B rows, none empty.
        pick: Chooses the columns from the logits.
        steps: How many ids to draw per row, maybe 0; the caller may stop earlier.
        first_id: Id of column 0 of the model's logits.
        unconditional: Prompt of the second row of every pair; None runs no pairs.

    Yields:
        Drawn columns, (B,), int64, ``steps`` times.
    """
    if steps < 1:
        return
    count = len(prompts)
    rows = [*prompts, *([unconditional] * count if unconditional is not None else [])]
    running = Rows(model, rows, steps - 1)
    for step in range(steps):
        logits = running.logits
        columns = pick(logits[:count], logits[count:] if unconditional is not None else None)
        yield columns
        if step + 1 < steps:
            running.advance((columns + first_id).repeat(len(rows) // count))
