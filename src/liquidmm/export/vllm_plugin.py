"""The logits processor that makes vLLM draw pictures; vLLM finds it by its entry point.

Contract: installing this package is enough (entry point group `vllm.logits_processors`): any vLLM
in the same environment loads `PairGuidance`, and it changes nothing but the rows of halves of
pictures (`pairs`). It serves both of vLLM's model runners, which ask for different methods: V1
tells what joined and left the batch, V2 tells which request slots are in a step. Bad arguments are
refused when a request arrives; what goes wrong later is logged and stops the pair, never the
engine. Importing this module needs vLLM.
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
from liquidmm.export.pairs import Half, PairGuide, Row
from liquidmm.model.checkpoint import local_folder
from liquidmm.model.processor import read_vocabulary

logger = init_logger("vllm.liquidmm")


class PairGuidance(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Joins the two halves of every picture in the batch."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request with bad arguments; both runners call this as it arrives."""
        Half.of(sampling_params)

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        """Read the served checkpoint's vocabulary.

        Args:
            vllm_config: vLLM's configuration; its model is a folder or a name on the hub.
            state: The device (V1), or the state of the request slots (V2).
            is_pin_memory: Given by V1 only.
        """
        del is_pin_memory
        self._state = state
        self._batch: dict[int, tuple[Half, Sequence[int]]] = {}
        self._slots: dict[int, Half] = {}
        self._guide: PairGuide | None = None
        try:
            folder = local_folder(vllm_config.model_config.model)
            self._guide = PairGuide(read_vocabulary(folder))
        except CheckpointError as error:
            logger.info("no pictures from this model: %s", error)

    def is_argmax_invariant(self) -> bool:
        """Say that greedy requests are changed too (V1)."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take in which requests joined, left or moved (V1)."""
        process_dict_updates(self._batch, batch_update, _started)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take in the request that a slot now holds (V2)."""
        half = Half.of(sampling_params)
        if half is None:
            self._slots.pop(req_idx, None)
        else:
            self._slots[req_idx] = half
        return half is not None

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """Give the rows of pairs their ids.

        Args:
            logits: Scores of the step, (R, V); changed in place.
            context: The step's slots (V2); None from V1.
        """
        if self._guide is not None:
            rows = self._rows() if context is None else self._rows_of(context, logits.shape[0])
            for message in self._guide.apply(logits, rows):
                logger.error("picture stopped: %s", message)
        return logits

    def _rows(self) -> list[Row]:
        return [
            Row(place=place, half=half, drawn=len(ids))
            for place, (half, ids) in self._batch.items()
        ]

    def _rows_of(self, context: Any, count: int) -> list[Row]:
        """List the halves whose prompt is computed (V2)."""
        slots = context.idx_mapping_np.tolist()
        if self._slots.keys().isdisjoint(slots):
            return []
        if count != len(slots):
            # Speculation gives a request several rows; halves that have them are no pair.
            return [
                Row(place=place, half=self._slots[slot], drawn=0)
                for place, slot in enumerate(context.expanded_idx_mapping.tolist())
                if slot in self._slots
            ]
        lengths = context.seq_lens_upper_bound_np.tolist()
        given, filled = self._state.prompt_len.np, self._state.prefill_len.np
        return [
            Row(place=place, half=self._slots[slot], drawn=length - int(given[slot]))
            for place, (slot, length) in enumerate(zip(slots, lengths, strict=True))
            if slot in self._slots and length >= filled[slot]
        ]


def _started(
    params: Any, _: Sequence[int] | None, output_ids: Sequence[int]
) -> tuple[Half, Sequence[int]] | None:
    """Give what is kept of a request that joined; vLLM goes on filling ``output_ids``."""
    half = Half.of(params)
    return None if half is None else (half, output_ids)
