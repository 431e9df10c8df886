from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from liquidmm.cli import main
from liquidmm.config import from_dict, to_dict
from liquidmm.data.shard_file import Row
from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.model.checkpoint import empty_language_model, load_language_model
from liquidmm.train.batch import Batch, hidden_states
from liquidmm.train.checks import check_length, check_pictures
from liquidmm.train.config import TrainConfig
from liquidmm.train.footprint import block_activations, footprint
from liquidmm.train.lora import LoraConfig, add_adapters
from liquidmm.train.model import ModelConfig, choose_trained
from liquidmm.train.plan import Machine, make_plan, report
from liquidmm.train.setup import open_setup

# The tiny Llama: a table of 376 x 32, two blocks of 7680 in matrices and 64 in norms, one norm.
TABLE, BLOCK, PARAMETERS = 12032, 7744, 27552
# The logits of the 96 ids of a micro-batch, in float32, twice.
CHUNK = 2 * 4 * 96 * 376


def run_of(plan, **tables) -> TrainConfig:
    for table, values in tables.items():
        plan[table] = plan.get(table, {}) | values
    return from_dict(TrainConfig, plan, "run.toml")


def memory(run: TrainConfig, vocabulary, ranks: int = 1) -> dict[str, int]:
    model = empty_language_model(run.checkpoint)
    choose_trained(model, vocabulary, run.model)
    return to_dict(footprint(model, run, ranks))


def test_one_rank_by_hand(plan, checkpoint):
    found = memory(run_of(plan), checkpoint.vocabulary)
    # of an id in a block: norms, inputs of products, feed-forward, attention, mask, log-sum-exp
    block = 2 * (8 * 32 + 4) + 2 * 4 * 32 + 4 * 4 * 48 + 4 * 4 * 32 + 4 * 96 + 4 * 2
    assert block == 2448
    assert found == {
        "parameters": 4 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
        "optimizer": 8 * PARAMETERS,
        "gathered": 0,
        "activations": 96 * (2 * block + 8 * 32),
        "loss": CHUNK + 2 * 4 * 96 * 32 + 8 * TABLE,
        "host": 0,
    }


def test_two_ranks_by_hand(plan, checkpoint):
    run = run_of(plan, train={"precision": "bfloat16"})
    block = 2 * (6 * 32 + 4) + 2 * 2 * 32 + 4 * 2 * 48 + 4 * 2 * 32 + 2 * 96 + 4 * 2
    assert block == 1360
    assert memory(run, checkpoint.vocabulary, ranks=2) == {
        "parameters": 2 * PARAMETERS,
        "gradients": 2 * PARAMETERS,
        "optimizer": 4 * PARAMETERS,
        # everything, since it has two blocks only; then the gradients of one
        "gathered": 2 * PARAMETERS + (2 + 4) * BLOCK,
        "activations": 96 * (2 * block + 6 * 32),
        "loss": CHUNK + 2 * 2 * 96 * 32 + (4 + 2) * TABLE,
        "host": 0,
    }


def test_what_each_setting_does(plan, checkpoint):
    vocabulary = checkpoint.vocabulary
    half = run_of(plan, train={"precision": "bfloat16", "global_batch_size": 4})
    before = memory(half, vocabulary, ranks=2)
    # two micro-batches are added up before they are exchanged
    assert before["gradients"] == 4 * PARAMETERS

    muon = replace(half, optim=replace(half.optim, optimizer="muon"))
    assert memory(muon, vocabulary)["optimizer"] == 4 * 15360 + 8 * (PARAMETERS - 15360)

    kept = replace(half, model=ModelConfig(activation_checkpointing=True))
    assert memory(kept, vocabulary, 2)["activations"] == 96 * (2 * 64 + 1360 + 6 * 32)

    flash = replace(half, model=ModelConfig(attn_implementation="flash_attention_2"))
    saved = before["activations"] - memory(flash, vocabulary, 2)["activations"]
    assert saved == 96 * 2 * (2 * 96 + 2 * 2 * 16)  # the mask, and keys and values repeated

    away = replace(half, parallel=replace(half.parallel, cpu_offload=True))
    found = memory(away, vocabulary, 2)
    assert found["host"] == (2 + 2 + 4) * PARAMETERS
    assert (found["parameters"], found["optimizer"]) == (0, 0)
    assert memory(away, vocabulary, 1)["host"] == 0  # one rank offloads nothing

    groups = replace(half, parallel=replace(half.parallel, dp_replicate=2))
    assert memory(groups, vocabulary, 2)["parameters"] == 4 * PARAMETERS

    frozen = replace(half, model=ModelConfig(freeze=("model.layers.*",)))
    assert memory(frozen, vocabulary, 1)["optimizer"] == 8 * (TABLE + 32)

    assert memory(half, vocabulary, 1)["gathered"] == 2 * 15360  # autocast's copies


@pytest.mark.parametrize(
    ("precision", "sharded"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_activations_are_what_pytorch_keeps(precision, sharded):
    length = 40  # no dimension of a weight, so that their copies can be told apart
    kept = []
    for layers in (1, 2):
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            intermediate_size=56,
            num_hidden_layers=layers,
        )
        model = LlamaForCausalLM(config).train()
        if sharded:
            model = model.to(precision)
        ids = torch.zeros(1, length, dtype=torch.int64)
        positions = torch.arange(length)[None] % 25
        batch = Batch(input_ids=ids, position_ids=positions, target=ids, task_ids=ids)
        saved = {}

        def note(tensor, saved=saved):
            if length in tensor.shape:
                saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        autocast = torch.autocast("cpu", precision, enabled=precision.itemsize == 2 and not sharded)
        with saved_tensors_hooks(note, lambda tensor: tensor), autocast:
            hidden_states(model, batch)
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    block = model.model.layers[0]
    each = block_activations(block, config, length, precision, "auto", sharded=sharded)
    assert kept[1] - kept[0] == length * each


def test_the_plan_of_a_run(plan):
    run = run_of(plan)
    found = make_plan(run, Machine(num_gpus=2, peak_tflops=1e-3, assumed_mfu=0.5))
    assert (found.model, found.parameters, found.trained) == ("LlamaForCausalLM", 27552, 27552)
    assert found.vocabulary["rows"] == 376
    assert [source.rows for source in found.data.sources] == [5, 5, 1, 5]
    assert [source.share for source in found.data.sources] == pytest.approx([1 / 2, *[1 / 6] * 3])
    assert sum(source.share_of_ids for source in found.data.sources) == pytest.approx(1)
    assert (found.steps, found.ids_per_step, found.ids) == (4, 192, 768)
    assert (found.rows_per_rank, found.micro_batches) == (1, 1)
    assert 0.8 < found.data.fill <= 1
    assert 0.2 < found.data.labelled < found.data.fill
    assert 20 < found.data.length < 96
    # 15360 weights of the blocks, 12032 of the head, and attention 2 layers and 32 wide
    each = 6 * 15360 + 6 * found.data.labelled * 12032 + 12 * 2 * 32 * found.data.length / 2
    assert found.flops_per_id == pytest.approx(each)
    assert found.flops == pytest.approx(768 * each)
    assert found.hours == pytest.approx(768 * each / (2 * 1e9 * 0.5) / 3600)
    assert found.fits
    assert not make_plan(run, Machine(gpu_memory_gib=0.001)).fits
    assert not run.out.exists()
    assert make_plan(run, Machine(num_gpus=2, peak_tflops=1e-3, assumed_mfu=0.5)) == found
    json.dumps(to_dict(found))


def test_passes_are_those_of_the_stream(plan):
    run = run_of(plan, train={"steps": 200})
    stream = open_setup(run, 1, torch.device("cpu")).stream
    for _ in range(run.train.steps):
        stream.take(range(run.train.global_batch_size))
    found = make_plan(run).data
    passes = [source.passes for source in found.sources]
    assert passes == pytest.approx(stream.passes, rel=0.05)
    assert found.fill == pytest.approx(stream.fill, abs=0.02)


def test_ranks_halve_the_shards(plan):
    one = make_plan(run_of(plan)).memory
    two = make_plan(run_of(plan), Machine(num_gpus=2)).memory
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(two, name) == getattr(one, name) // 2


def test_adapters_are_counted_as_they_are_added(plan, checkpoint_folder, checkpoint):
    lora = LoraConfig(rank=3, target_modules=("q_proj", "down_proj"))
    run = replace(run_of(plan), model=ModelConfig(lora=lora))
    found = make_plan(run)
    model = load_language_model(checkpoint_folder, torch.float32)
    add_adapters(model, checkpoint.vocabulary, lora)
    real = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # two blocks of rank 3 between 32 and 32, and 48 and 32; rows of 16 codes and 3 markers
    assert found.trained == real == 2 * 3 * (64 + 80) + 19 * 32
    assert found.parameters == PARAMETERS
    assert found.memory.optimizer == 8 * real


@pytest.mark.parametrize("family", ["llama", "qwen2-tight", "qwen3", "gemma2", "gemma3", "olmo2"])
def test_every_family_has_a_footprint(plan, family_base, checkpoint, family):
    run = replace(run_of(plan), checkpoint=family_base(family))
    adapted = replace(run, model=ModelConfig(lora=LoraConfig()))
    vocabulary = replace(checkpoint.vocabulary, text_size=200, image_offset=200)
    whole, few = (memory(each, vocabulary) for each in (run, adapted))
    assert min(size for name, size in whole.items() if name not in ("gathered", "host")) > 0
    assert 0 < few["optimizer"] < whole["optimizer"]


def test_frozen_weights_are_not_trained(plan):
    run = replace(run_of(plan), model=ModelConfig(freeze=("model.layers.*",)))
    found = make_plan(run)
    assert found.trained == TABLE + 32
    whole = make_plan(run_of(plan))
    assert whole.flops_per_id - found.flops_per_id == pytest.approx(2 * 15360)


def test_no_weights_are_needed(plan, checkpoint_folder, tmp_path):
    expected = make_plan(run_of(plan))
    hollow = tmp_path / "hollow"
    shutil.copytree(checkpoint_folder, hollow)
    (hollow / "model.safetensors").unlink()
    plan["checkpoint"] = str(hollow)
    assert make_plan(run_of(plan)) == expected


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"data": {"seq_len": 300}},
            "data.seq_len: sequences have up to 300 ids, the model has max_position_embeddings",
        ),
        (
            {"data": {"seq_len": 16}},
            "{shards} has pictures of 4 x 4 codes, which take at least 19 ids; a sequence has 16",
        ),
        (
            {"train": {"global_batch_size": 3, "micro_batch_size": 0}},
            "3 rows can't be shared evenly by 2",
        ),
        ({"parallel": {"dp_replicate": 3}}, "parallel.dp_replicate: 3 does not divide 2 ranks"),
        ({"model": {"freeze": ["model.layer.*"]}}, "model.freeze: no parameter fits"),
        ({"model": {"freeze": ["*"]}}, "model.freeze: freezes everything"),
        (
            {"model": {"lora": {"target_modules": ["qproj"]}}},
            "lora.target_modules: no linear layer",
        ),
    ],
)
def test_what_is_wrong_is_said_at_once(plan, pictures, tables, message):
    plan["data"]["sources"][0]["path"] = str(pictures)
    run = run_of(plan, **tables)
    with pytest.raises((ConfigError, DataError), match=re.escape(message.format(shards=pictures))):
        make_plan(run, Machine(num_gpus=2))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, write_shards) -> Path:
    """Shards that hold nothing but a picture with a caption."""
    codes = np.zeros((4, 4), dtype=np.uint16)
    row = Row(kind="image_text", key="a", captions=("a",), pictures=(codes,))
    return write_shards(tmp_path_factory.mktemp("pictures"), [row])


def test_checks_alone(plan, pictures):
    run = run_of(plan)
    config = LlamaConfig(max_position_embeddings=96)
    check_length(run, config)
    config.max_position_embeddings = 95
    check_length(run_of(deepcopy(plan), data={"max_document_tokens": 95}), config)
    with pytest.raises(ConfigError, match="sequences have up to 96 ids.*= 95"):
        check_length(run, config)

    sources = [{"path": str(pictures), "task": "image_to_text"}]
    check_pictures(run_of(plan, data={"sources": sources, "eval": [], "seq_len": 19}))
    with pytest.raises(DataError, match="data.eval.0"):
        plan["data"]["sources"] = [{"path": str(pictures), "task": "text"}]  # uses no picture
        check_pictures(run_of(plan, data={"eval": sources, "seq_len": 18}))


def test_other_files_than_needed(plan, tmp_path, base_folder, write_shards, rows):
    other = write_shards(tmp_path / "other", rows, "another")
    plan["data"]["eval"] = [{"path": str(other), "task": "text_to_image"}]
    with pytest.raises(DataError, match="image tokenizer another"):
        make_plan(run_of(plan))
    plan["checkpoint"] = str(base_folder)
    with pytest.raises(CheckpointError, match="liquid expand"):
        make_plan(run_of(plan))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_gpus": 0}, "num_gpus: must be at least 1 (0)"),
        ({"assumed_mfu": 1.5}, "assumed_mfu: must be above 0 and at most 1 (1.5)"),
        ({"gpu_memory_gib": 0.0}, "gpu_memory_gib: must be above 0"),
        ({"peak_tflops": -1.0}, "peak_tflops: must be above 0"),
    ],
)
def test_impossible_machines(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Machine(**values)


def test_report(plan, shards):
    text = report(make_plan(run_of(plan), Machine(num_gpus=2, peak_tflops=312)))
    assert "LlamaForCausalLM, 27,552 parameters, 27,552 trained" in text
    assert re.search(rf"{shards} +text_to_image +5 +50\.0%", text)
    assert "4 of 192 ids, 768 in all" in text
    assert "fits into 90% of 80" in text
    assert "2 x 312 TFLOP/s (as given), 40% of it used" in text
    assert text.count("estimate") == 3


def test_command_line(plan, tmp_path):
    path = tmp_path / "run.toml"
    lines = [f'checkpoint = "{plan["checkpoint"]}"', f'out = "{plan["out"]}"']
    lines += ["[train]", "steps = 4", "[data]", "seq_len = 96"]
    for source in plan["data"]["sources"]:
        lines += ["[[data.sources]]", f'path = "{source["path"]}"', f'task = "{source["task"]}"']
    path.write_text("\n".join(lines))
    arguments = ["train", str(path), "--set", "train.global_batch_size=4", "--dry-run"]

    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.startswith("model     LlamaForCausalLM")

    arguments += ["--num-gpus", "2", "--assumed-mfu", "0.25", "--gpu-memory", "40", "--json"]
    found = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    machine = {"num_gpus": 2, "gpu_memory_gib": 40.0, "peak_tflops": None, "assumed_mfu": 0.25}
    assert found["machine"] == machine
    assert found["rows_per_rank"] == 2
    assert not Path(plan["out"]).exists()

    result = CliRunner().invoke(main, [*arguments, "--num-gpus", "0"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "num_gpus: must be at least 1" in result.stderr
    result = CliRunner().invoke(main, ["train", str(path), "--json"])
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
