"""The adapter between vLLM's two model runners and `vllm_pairs`, with stand-ins for vLLM.

benchmarks/engines.sh runs it with vLLM itself.
"""

import importlib
import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from liquidmm.errors import ConfigError
from liquidmm.export.vllm_pairs import CODES, GUIDANCE, ROLE


class RunnerV1:
    """vLLM's interface for its V1 model runner: no method of ours."""


class RunnerV2:
    """The same for V2."""


def update(state, batch, started):
    """What vLLM's helper does with requests that came and went."""
    for place, params, prompt, output in batch.added:
        state.pop(place, None)
        if (new := started(params, prompt, output)) is not None:
            state[place] = new
    for place in batch.removed:
        state.pop(place, None)


@pytest.fixture
def plugin(monkeypatch):
    logger = logging.getLogger("vllm.liquidmm")
    modules = {
        "vllm": {},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.v1": {},
        "vllm.v1.sample": {},
        "vllm.v1.sample.logits_processor": {
            "LogitsProcessor": RunnerV1,
            "process_dict_updates": update,
        },
        "vllm.v1.worker": {},
        "vllm.v1.worker.gpu": {},
        "vllm.v1.worker.gpu.sample": {},
        "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": RunnerV2},
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    name = "liquidmm.export.vllm_plugin"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    del sys.modules[name]
    logger.handlers.clear()


def config(folder):
    return SimpleNamespace(model_config=SimpleNamespace(model=str(folder)))


def step(checkpoint):
    size = checkpoint.vocabulary.size
    return torch.randn(4, size, generator=torch.Generator().manual_seed(1))


def picked(logits, places):
    return [(logits[place] > -torch.inf).nonzero()[:, 0].tolist() for place in places]


def test_plugin_class_serves_both_runners(plugin, checkpoint_folder):
    assert issubclass(plugin.PairGuidance, RunnerV1)
    assert issubclass(plugin.PairGuidance, RunnerV2)
    assert not plugin.PairGuidance(config(checkpoint_folder), "cpu", False).is_argmax_invariant()


def test_plugin_invalid_argument_rejected_on_arrival(plugin, settings):
    plugin.PairGuidance.validate_params(settings())
    with pytest.raises(ConfigError, match="liquid_codes"):
        plugin.PairGuidance.validate_params(settings(**{CODES: -1}))


def test_plugin_v1_and_v2_sample_the_same_tokens(plugin, checkpoint, checkpoint_folder, settings):
    conditional, other = settings(), settings(**{ROLE: "unconditional"})
    text = settings()
    text.extra_args = None
    v1 = plugin.PairGuidance(config(checkpoint_folder), "cpu", False)
    outputs = [9] * 3, [9] * 3
    v1.update_state(
        SimpleNamespace(
            added=[
                (0, conditional, [1], outputs[0]),
                (1, text, [1], []),
                (3, other, [1], outputs[1]),
            ],
            removed=[],
        )
    )
    one = v1.apply(step(checkpoint))

    state = SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.array([0, 7, 0, 0, 2, 5])),
        prefill_len=SimpleNamespace(np=np.array([0, 7, 0, 0, 2, 5])),
    )
    v2 = plugin.PairGuidance(config(checkpoint_folder), state)
    assert v2.add_request(1, conditional)
    assert v2.add_request(4, other)
    assert not v2.add_request(5, text)
    context = SimpleNamespace(
        idx_mapping_np=np.array([1, 5, 0, 4]), seq_lens_upper_bound_np=np.array([10, 6, 1, 5])
    )
    two = v2.apply(step(checkpoint), context)
    assert torch.equal(one, two)
    ids = picked(one, [0, 3])
    assert ids[0] == ids[1]
    assert checkpoint.vocabulary.is_image(torch.tensor(ids[0])).all()
    assert torch.equal(one[[1, 2]], step(checkpoint)[[1, 2]])


def test_plugin_v1_tracks_batch_changes(plugin, checkpoint, checkpoint_folder, settings):
    processor = plugin.PairGuidance(config(checkpoint_folder), "cpu", False)
    outputs = [], []
    pair = settings(**{CODES: 1}), settings(**{CODES: 1, ROLE: "unconditional"})
    added = [(place, pair[place], [1], outputs[place]) for place in (0, 1)]
    processor.update_state(SimpleNamespace(added=added, removed=[]))
    assert len(set(map(tuple, picked(processor.apply(step(checkpoint)), [0, 1])))) == 1
    for ids in outputs:  # vLLM fills the lists that it gave
        ids.append(5)
    eoi, marker = checkpoint.vocabulary.eoi, checkpoint.vocabulary.unconditional
    assert picked(processor.apply(step(checkpoint)), [0, 1]) == [[eoi], [eoi]]
    processor.update_state(SimpleNamespace(added=[], removed=[1]))
    assert picked(processor.apply(step(checkpoint)), [0]) == [[marker]]


@pytest.mark.parametrize("missing", ["prefill", "slot"])
def test_plugin_v2_incomplete_pair_stopped(
    plugin, checkpoint, checkpoint_folder, settings, missing, caplog
):
    state = SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.array([7, 2])),
        prefill_len=SimpleNamespace(np=np.array([7, 2])),
    )
    processor = plugin.PairGuidance(config(checkpoint_folder), state)
    processor.add_request(0, settings())
    processor.add_request(1, settings(**{ROLE: "unconditional"}))
    # The conditional prompt is partly computed, or not in this step at all.
    present = [0, 1] if missing == "prefill" else [1]
    context = SimpleNamespace(
        idx_mapping_np=np.array(present),
        seq_lens_upper_bound_np=np.array([6, 2][-len(present) :]),
    )
    logits = processor.apply(step(checkpoint)[: len(present)], context)
    assert picked(logits, [len(present) - 1]) == [[checkpoint.vocabulary.unconditional]]
    assert "image stopped: pair a: its conditional request is not" in caplog.text


def test_plugin_v2_speculation_stops_pairs(plugin, checkpoint, checkpoint_folder, settings):
    processor = plugin.PairGuidance(config(checkpoint_folder), SimpleNamespace())
    processor.add_request(0, settings())
    processor.add_request(1, settings(**{ROLE: "unconditional"}))
    context = SimpleNamespace(
        idx_mapping_np=np.array([0, 1]), expanded_idx_mapping=torch.tensor([0, 0, 1, 1])
    )
    logits = processor.apply(step(checkpoint), context)
    assert picked(logits, range(4)) == [[checkpoint.vocabulary.unconditional]] * 4


def test_plugin_v2_slot_reused_by_text(plugin, checkpoint, checkpoint_folder, settings):
    processor = plugin.PairGuidance(config(checkpoint_folder), SimpleNamespace())
    text = settings(**{GUIDANCE: 1.0})
    processor.add_request(2, text)
    text.extra_args = None
    processor.add_request(2, text)
    context = SimpleNamespace(idx_mapping_np=np.array([2, 3, 0, 1]))
    assert torch.equal(processor.apply(step(checkpoint), context), step(checkpoint))


def test_plugin_model_without_codes_unchanged(plugin, base_folder, settings):
    processor = plugin.PairGuidance(config(base_folder), "cpu", False)
    processor.update_state(SimpleNamespace(added=[(0, settings(), [1], [])], removed=[]))
    logits = torch.zeros(1, 360)
    assert torch.equal(processor.apply(logits), torch.zeros(1, 360))
