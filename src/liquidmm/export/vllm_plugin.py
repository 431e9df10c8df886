"""The logits processor that generates images in vLLM.

Installing this package is enough (entry point group `vllm.logits_processors`): any vLLM in the same
environment loads `PairGuidance`, which changes only the rows of guided pairs (`vllm_pairs`). It
supports both model runners of vLLM, which call different methods: V1 reports which requests joined
and left the batch, and V2 reports which request slots are in a step. Invalid arguments are rejected
when a request arrives; later problems are logged and stop only the pair, never the engine.
Importing this module requires vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import LogitsProcessor as RunnerV1
from vllm.v1.sample.logits_processor import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as RunnerV2

from liquidmm.errors import CheckpointError
from liquidmm.export.vllm_pairs import ActiveRequest, GuidedRequest, PairSampler
from liquidmm.model.checkpoint import local_folder
from liquidmm.model.processor import read_vocabulary

logger = init_logger("vllm.liquidmm")


class PairGuidance(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Joins the two requests of every guided pair in the batch."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Reject a request with invalid arguments; both runners call this on arrival."""
        GuidedRequest.from_settings(sampling_params)

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        """Read the vocabulary of the served checkpoint, a folder or a name on the hub.

        ``state`` is the device (V1) or the state of the request slots (V2).
        """
        del is_pin_memory
        self._state = state
        self._batch: dict[int, tuple[GuidedRequest, Sequence[int]]] = {}
        self._slots: dict[int, GuidedRequest] = {}
        self._sampler: PairSampler | None = None
        try:
            folder = local_folder(vllm_config.model_config.model)
            self._sampler = PairSampler(read_vocabulary(folder))
        except CheckpointError as error:
            logger.info("this model cannot generate images: %s", error)

    def is_argmax_invariant(self) -> bool:
        """Return False: greedy requests change too (V1)."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Record which requests joined, left or moved (V1)."""
        process_dict_updates(self._batch, batch_update, _joined)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Record the new request of a slot (V2)."""
        request = GuidedRequest.from_settings(sampling_params)
        if request is None:
            self._slots.pop(req_idx, None)
        else:
            self._slots[req_idx] = request
        return request is not None

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Sample the tokens of guided pairs: ``logits``, (R, V), are changed in place.

        ``context`` has the step's slots (V2); None from V1.
        """
        if self._sampler is None:
            return logits
        if context is None:
            requests = [
                ActiveRequest(row=row, request=request, generated=len(ids))
                for row, (request, ids) in self._batch.items()
            ]
        else:
            requests = self._from_slots(context, logits.shape[0])
        for message in self._sampler.apply(logits, requests):
            logger.error("image stopped: %s", message)
        return logits

    def _from_slots(self, context: Any, count: int) -> list[ActiveRequest]:
        """List the guided requests whose prompt has been processed (V2)."""
        slots = context.idx_mapping_np.tolist()
        if self._slots.keys().isdisjoint(slots):
            return []
        if count != len(slots):
            # Speculative decoding gives a request several rows; such requests never form a pair.
            return [
                ActiveRequest(row=row, request=self._slots[slot], generated=0)
                for row, slot in enumerate(context.expanded_idx_mapping.tolist())
                if slot in self._slots
            ]
        lengths = context.seq_lens_upper_bound_np.tolist()
        prompts, prefills = self._state.prompt_len.np, self._state.prefill_len.np
        return [
            ActiveRequest(row=row, request=self._slots[slot], generated=length - int(prompts[slot]))
            for row, (slot, length) in enumerate(zip(slots, lengths, strict=True))
            if slot in self._slots and length >= prefills[slot]
        ]


def _joined(
    params: Any, _: Sequence[int] | None, output_ids: Sequence[int]
) -> tuple[GuidedRequest, Sequence[int]] | None:
    """Return the record of a request that joined; vLLM keeps extending ``output_ids``."""
    request = GuidedRequest.from_settings(params)
    return None if request is None else (request, output_ids)
