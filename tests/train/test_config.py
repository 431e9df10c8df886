from __future__ import annotations

import re

import pytest

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import ConfigError
from liquidmm.train.config import TrainConfig, differences


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("train", "stepss", 4, r"train\.stepss.*'steps'"),
        ("train", "steps", 0, r"train\.steps.*1.*0"),
        ("train", "micro_batch_size", 3, r"train\.micro_batch_size.*2.*3"),
        ("train", "precision", "fp16", r"train\.precision.*bfloat16.*fp16"),
        ("train", "eval_samples", 0, r"train\.eval_samples.*1.*0"),
        ("train", "loss_spike_sigma", -1.0, r"train\.loss_spike_sigma.*0.*-1"),
        ("data", "seq_len", 4, r"data\.seq_len.*8.*4"),
        ("data", "num_workers", -1, r"data\.num_workers.*0.*-1"),
        ("data", "sources", [], r"data\.sources"),
        ("optim", "lr", 0, r"optim\.lr.*0"),
        ("optim", "warmup_steps", 4, r"warmup_steps.*4.*4"),
    ],
)
def test_run_file_with_a_wrong_value_rejected(plan, table, key, value, message):
    plan[table][key] = value
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, plan, "run.toml")


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("", "final_dtype", "save_dtype"),
        ("data", "length", "seq_len"),
        ("data", "context", "max_document_tokens"),
        ("data", "window", "packing_buffer"),
        ("data", "workers", "num_workers"),
        ("data", "too_long", "overlong"),
        ("data", "render", "format"),
        ("data", "validation", "eval"),
        ("train", "batch_rows", "global_batch_size"),
        ("train", "micro_batch_rows", "micro_batch_size"),
        ("train", "validate_every", "eval_every"),
        ("train", "validate_rows", "eval_samples"),
        ("train", "keep", "keep_checkpoints"),
        ("train", "spike", "loss_spike_sigma"),
        ("optim", "matrices", "optimizer"),
        ("optim", "warmup", "warmup_steps"),
        ("optim", "clip", "grad_clip"),
        ("optim", "max_z", "max_z_loss"),
        ("parallel", "replicas", "dp_replicate"),
        ("parallel", "reshard", "reshard_after_forward"),
        ("parallel", "accumulate", "grad_accumulation"),
        ("parallel", "offload", "cpu_offload"),
        ("model", "attention", "attn_implementation"),
        ("model", "checkpoint_activations", "activation_checkpointing"),
        ("model.lora", "targets", "target_modules"),
        ("model.lora", "quantize", "load_in_4bit"),
    ],
)
def test_old_key_rejected_with_the_new_name(plan, table, old, new):
    values = plan
    for name in filter(None, table.split(".")):
        values = values.setdefault(name, {})
    values[old] = 1
    key = f"{table}.{old}".lstrip(".")
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .*'{new}'"):
        from_dict(TrainConfig, plan, "run.toml")


def test_settings_without_effect_on_learning_may_change(plan):
    saved = to_dict(from_dict(TrainConfig, plan, "run.toml"))
    plan["train"] |= {"keep_checkpoints": 7, "save_every": 1}
    plan |= {"save_dtype": "float32", "parallel": {"dp_replicate": 2}}
    assert differences(saved, from_dict(TrainConfig, plan, "run.toml")) == []
    plan["seed"] = 5
    assert differences(saved, from_dict(TrainConfig, plan, "run.toml")) == ["seed is 5, was 0"]


def test_seed_and_out_checked(plan):
    with pytest.raises(ConfigError, match="seed.*-1"):
        from_dict(TrainConfig, plan | {"seed": -1}, "run.toml")
    with pytest.raises(ConfigError, match="out.*checkpoint"):
        from_dict(TrainConfig, plan | {"out": plan["checkpoint"]}, "run.toml")


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({"global_batch_size": 3}, 2, r"train\.global_batch_size.*2.*3"),
        ({"global_batch_size": 4, "eval_samples": 3}, 2, r"train\.eval_samples.*2.*3"),
        ({"global_batch_size": 6, "micro_batch_size": 2}, 2, r"train\.micro_batch_size.*3.*2"),
    ],
)
def test_batch_that_ranks_cannot_divide_rejected(plan, changes, ranks, message):
    plan["train"] |= changes
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, plan, "run.toml").batch_size_per_rank(ranks)
