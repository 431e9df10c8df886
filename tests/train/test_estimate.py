from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from liquidmm.cli import main
from liquidmm.config import from_dict, to_dict
from liquidmm.errors import ConfigError
from liquidmm.model.checkpoint import empty_language_model, load_language_model
from liquidmm.train.batch import Batch
from liquidmm.train.config import TrainConfig
from liquidmm.train.estimate import Machine, block_activations, estimate, estimate_memory
from liquidmm.train.lora import LoraConfig, add_adapters
from liquidmm.train.model import ModelConfig, hidden_states, select_trainable
from liquidmm.train.setup import open_setup

# The tiny Llama: a table of 376 x 32, two blocks of 7680 in matrices and 64 in norms, one norm.
TABLE, PARAMETERS = 12032, 27552
# Logits of the 96 positions of a micro-batch and their gradient, in float32.
CHUNK = 2 * 4 * 96 * 376
# Numbers that a block keeps per token: 32 wide, 2 heads of 16, 48 in the feed-forward layer.
BLOCK = 8 * 32 + 4 * 32 + 4 * 48


def run_of(plan, **tables) -> TrainConfig:
    for table, values in tables.items():
        plan[table] = plan.get(table, {}) | values
    return from_dict(TrainConfig, plan, "run.toml")


def memory(run: TrainConfig, vocabulary, ranks: int = 1) -> dict[str, int]:
    model = empty_language_model(run.checkpoint)
    select_trainable(model, vocabulary, run.model)
    return to_dict(estimate_memory(model, run, ranks))


def test_memory_of_one_rank(plan, checkpoint):
    assert memory(run_of(plan), checkpoint.vocabulary) == {
        "weights": 4 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
        "optimizer": 8 * PARAMETERS,
        "activations": 4 * 96 * 2 * BLOCK + CHUNK,
        "cpu": 0,
    }


def test_memory_of_two_ranks(plan, checkpoint):
    run = run_of(plan, train={"precision": "bfloat16"})
    assert memory(run, checkpoint.vocabulary, ranks=2) == {
        "weights": 2 * PARAMETERS,
        "gradients": 2 * PARAMETERS,
        "optimizer": 4 * PARAMETERS,
        "activations": 2 * 96 * 2 * BLOCK + CHUNK,
        "cpu": 0,
    }


def test_memory_depends_on_each_setting(plan, checkpoint):
    vocabulary = checkpoint.vocabulary
    half = run_of(plan, train={"precision": "bfloat16", "global_batch_size": 4})
    # two micro-batches accumulate full gradients
    assert memory(half, vocabulary, ranks=2)["gradients"] == 4 * PARAMETERS

    muon = replace(half, optim=replace(half.optim, optimizer="muon"))
    assert memory(muon, vocabulary)["optimizer"] == 4 * 15360 + 8 * (PARAMETERS - 15360)

    kept = replace(half, model=ModelConfig(activation_checkpointing=True))
    assert memory(kept, vocabulary, 2)["activations"] == 2 * 96 * (2 * 32 + BLOCK) + CHUNK

    offloaded = replace(half, parallel=replace(half.parallel, cpu_offload=True))
    found = memory(offloaded, vocabulary, 2)
    assert found["cpu"] == (2 + 2 + 4) * PARAMETERS
    assert (found["weights"], found["optimizer"]) == (0, 0)
    assert memory(offloaded, vocabulary, 1)["cpu"] == 0  # one rank offloads nothing

    replicas = replace(half, parallel=replace(half.parallel, dp_replicate=2))
    assert memory(replicas, vocabulary, 2)["weights"] == 4 * PARAMETERS

    frozen = replace(half, model=ModelConfig(freeze=("model.layers.*",)))
    assert memory(frozen, vocabulary, 1)["optimizer"] == 8 * (TABLE + 32)

    lora, quantized = (
        replace(half, model=ModelConfig(lora=LoraConfig(load_in_4bit=small)))
        for small in (False, True)
    )
    saved = memory(lora, vocabulary)["weights"] - memory(quantized, vocabulary)["weights"]
    assert saved == 4 * 15360 - round(15360 * 4.126953125 / 8)


@pytest.mark.parametrize(
    ("precision", "autocast"),
    [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)],
)
def test_activations_within_a_fifth_of_what_pytorch_keeps(precision, autocast):
    length = 40  # not a dimension of a weight, so copies of weights can be excluded
    kept = []
    for layers in (1, 2):
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=128,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=18,
            intermediate_size=352,
            num_hidden_layers=layers,
        )
        model = LlamaForCausalLM(config).train()
        if not autocast:
            model = model.to(precision)
        ids = torch.zeros(1, length, dtype=torch.int64)
        positions = torch.arange(length)[None] % 25
        batch = Batch(input_ids=ids, position_ids=positions, targets=ids, task_ids=ids)
        saved = {}

        def note(tensor, saved=saved):
            if length in tensor.shape:
                saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        context = torch.autocast("cpu", precision, enabled=autocast)
        with saved_tensors_hooks(note, lambda tensor: tensor), context:
            hidden_states(model, batch)
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    found = length * precision.itemsize * block_activations(config, autocast=autocast)
    assert found == pytest.approx(kept[1] - kept[0], rel=0.2)


def test_estimate_of_a_run(plan):
    run = run_of(plan)
    machine = Machine(num_gpus=2, peak_tflops=1e-3, assumed_mfu=0.5)
    found = estimate(run, machine)
    assert (found.model, found.parameters, found.trained) == ("LlamaForCausalLM", 27552, 27552)
    assert found.vocabulary["rows"] == 376
    assert [source.samples for source in found.data.sources] == [5, 5, 1, 5]
    assert [source.share for source in found.data.sources] == pytest.approx([1 / 2, *[1 / 6] * 3])
    assert sum(source.token_share for source in found.data.sources) == pytest.approx(1)
    assert (found.steps, found.tokens_per_step, found.tokens) == (4, 192, 768)
    assert (found.batch_size_per_rank, found.micro_batches) == (1, 1)
    assert 0.8 < found.data.packing_efficiency <= 1
    assert 0.2 < found.data.targets < found.data.packing_efficiency
    assert 20 < found.data.document_tokens < 96
    # 15360 weights of the blocks, 12032 of the head, and attention in 2 layers of width 32
    attention = 12 * 2 * 32 * found.data.document_tokens / 2
    each = 6 * 15360 + 6 * found.data.targets * 12032 + attention
    assert found.flops_per_token == pytest.approx(each)
    assert found.flops == pytest.approx(768 * each)
    assert found.hours == pytest.approx(768 * each / (2 * 1e9 * 0.5) / 3600)
    assert found.fits
    assert not estimate(run, Machine(gpu_memory_gib=0.001)).fits
    assert not run.out.exists()
    assert estimate(run, machine) == found
    json.dumps(to_dict(found))


def test_epochs_are_those_of_the_stream(plan):
    run = run_of(plan, train={"steps": 200})
    stream = open_setup(run, 1, torch.device("cpu")).stream
    for _ in range(run.train.steps):
        stream.next(range(run.train.global_batch_size))
    found = estimate(run, Machine()).data
    assert [each.epochs for each in found.sources] == pytest.approx(stream.epochs, rel=0.05)
    assert found.packing_efficiency == pytest.approx(stream.packing_efficiency, abs=0.02)


def test_adapters_counted_as_added(plan, checkpoint_folder, checkpoint):
    lora = LoraConfig(rank=3, target_modules=("q_proj", "down_proj"))
    found = estimate(replace(run_of(plan), model=ModelConfig(lora=lora)), Machine())
    model = load_language_model(checkpoint_folder, torch.float32)
    add_adapters(model, checkpoint.vocabulary, lora)
    real = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # rank 3 between 32 and 32, and 48 and 32, in two blocks; rows of 16 codes and 3 special tokens
    assert found.trained == real == 2 * 3 * (64 + 80) + 19 * 32
    assert found.parameters == PARAMETERS
    assert found.memory.optimizer == 8 * real


@pytest.mark.parametrize("family", ["llama", "qwen2-tight", "qwen3", "gemma2", "gemma3", "olmo2"])
def test_every_family_has_a_memory_estimate(plan, family_base, checkpoint, family):
    run = replace(run_of(plan), checkpoint=family_base(family))
    adapted = replace(run, model=ModelConfig(lora=LoraConfig()))
    vocabulary = replace(checkpoint.vocabulary, text_size=200, image_offset=200)
    complete, few = (memory(each, vocabulary) for each in (run, adapted))
    assert min(size for name, size in complete.items() if name != "cpu") > 0
    assert 0 < few["optimizer"] < complete["optimizer"]


def test_frozen_weights_not_counted_as_trained(plan):
    run = replace(run_of(plan), model=ModelConfig(freeze=("model.layers.*",)))
    found = estimate(run, Machine())
    assert found.trained == TABLE + 32
    complete = estimate(run_of(plan), Machine())
    assert complete.flops_per_token - found.flops_per_token == pytest.approx(2 * 15360)


def test_estimate_needs_no_weights(plan, checkpoint_folder, tmp_path):
    expected = estimate(run_of(plan), Machine())
    hollow = tmp_path / "hollow"
    shutil.copytree(checkpoint_folder, hollow)
    (hollow / "model.safetensors").unlink()
    plan["checkpoint"] = str(hollow)
    assert estimate(run_of(plan), Machine()) == expected


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"data": {"seq_len": 300}}, r"data\.seq_len.*300.*max_position_embeddings"),
        (
            {"train": {"global_batch_size": 3, "micro_batch_size": 0}},
            r"train\.global_batch_size.*2.*3",
        ),
        ({"parallel": {"dp_replicate": 3}}, r"parallel\.dp_replicate.*2.*3"),
        ({"model": {"freeze": ["model.layer.*"]}}, r"model\.freeze.*model\.layer\.\*"),
        ({"model": {"freeze": ["*"]}}, r"model\.freeze.*every"),
        ({"model": {"lora": {"target_modules": ["qproj"]}}}, r"lora\.target_modules.*qproj"),
    ],
)
def test_impossible_settings_rejected(plan, tables, message):
    run = run_of(plan, **tables)
    with pytest.raises(ConfigError, match=message):
        estimate(run, Machine(num_gpus=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_gpus": 0}, "num_gpus.*1.*0"),
        ({"assumed_mfu": 1.5}, "assumed_mfu.*0.*1.*1.5"),
        ({"gpu_memory_gib": 0.0}, "gpu_memory_gib.*0"),
        ({"peak_tflops": -1.0}, "peak_tflops.*0.*-1"),
    ],
)
def test_impossible_machine_rejected(values, message):
    with pytest.raises(ConfigError, match=message):
        Machine(**values)


def test_command_prints_the_estimate(plan, shards, tmp_path):
    path = tmp_path / "run.toml"
    lines = [f'checkpoint = "{plan["checkpoint"]}"', f'out = "{plan["out"]}"']
    lines += ["[train]", "steps = 4", "[data]", "seq_len = 96"]
    for source in plan["data"]["sources"]:
        lines += ["[[data.sources]]", f'path = "{source["path"]}"', f'task = "{source["task"]}"']
    path.write_text("\n".join(lines))
    arguments = ["train", str(path), "--set", "train.global_batch_size=4", "--dry-run"]

    options = ["--num-gpus", "2", "--peak-tflops", "312"]
    result = CliRunner().invoke(main, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.startswith("model     LlamaForCausalLM, 27,552 parameters, 27,552 trained")
    assert re.search(rf"{shards} +text_to_image +5 +25\.0%", result.stdout)
    assert "4 of 384 tokens, 1,536 in total" in result.stdout
    assert "fits in 80% of 80" in result.stdout
    assert "2 x 312 TFLOP/s (as given), assumed MFU 40%" in result.stdout

    arguments += ["--num-gpus", "2", "--assumed-mfu", "0.25", "--gpu-memory", "40", "--json"]
    found = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    machine = {"num_gpus": 2, "gpu_memory_gib": 40.0, "peak_tflops": None, "assumed_mfu": 0.25}
    assert found["machine"] == machine
    assert found["batch_size_per_rank"] == 2
    assert not Path(plan["out"]).exists()

    result = CliRunner().invoke(main, [*arguments, "--num-gpus", "0"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search("num_gpus.*1.*0", result.stderr)
    result = CliRunner().invoke(main, ["train", str(path), "--json"])
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
