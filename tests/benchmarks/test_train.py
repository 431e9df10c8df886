"""Training benchmarks: packed and padded candidates, and one tiny run of the script."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from _packed import count, prepare_model
from _reference import documents, pad, padded_efficiency
from _results import Result
from _workloads import SHAPES, RandomSequences, Shape, llama
from liquidmm.data.examples import IGNORE_INDEX, TASKS, Example
from liquidmm.data.packing import PADDING_TASK, PackingConfig, pack
from liquidmm.train.batch import Batch
from liquidmm.train.flops import count_matrices
from liquidmm.train.model import ModelConfig
from train import TrainingBenchmark, checkpoint_task, main, shape_task

TINY = Shape(
    name="135m",  # the shape that is compared with padded batches
    config=llama(32, 2, 2, 1, intermediate_size=48, vocab_size=64, tie_word_embeddings=True),
    global_batch_size=2,
    micro_batch_size=1,
    seq_len=128,
)
PLAIN = ModelConfig(activation_checkpointing=True)


@pytest.fixture
def task(run_file, shards, checkpoint_folder):
    return checkpoint_task(run_file, shards, checkpoint_folder, 0, "cpu")


def examples(lengths):
    for index, length in enumerate(lengths):
        ids = np.arange(10 * index, 10 * index + length, dtype=np.int32)
        yield Example(input_ids=ids, labels=ids.copy(), task="text")


@pytest.mark.slow
def test_train_script_json_has_every_figure(run_script, run_file, shards, checkpoint_folder):
    found = run_script(
        "train",
        *("--run", run_file, "--data", shards, "--checkpoint", checkpoint_folder),
        *("--seconds", 0.3, "--steps", 2, "--sequences", 2, "--device", "cpu"),
        *("--tokens", 16, "--vocabulary", 40, "--hidden", 4),
    )
    for name in (
        "packing_efficiency",
        "padded_efficiency",
        "useful_tokens_speedup_vs_padded",
        "useful_tokens_per_second",
        "padded_useful_tokens_per_second",
        "training_peak_memory",
        "loss_peak_memory_ratio",
        "loss_speed_ratio",
    ):
        assert found["figures"][name]["value"] > 0, name
    assert sorted(found["missing"]) == [f"{name}_tokens_per_second" for name in sorted(SHAPES)]
    settings = found["settings"]
    assert settings["device"] == "cpu"
    assert settings["speed"]["padded_batch_size"] == 2
    ours, padded = (settings["speed"][f"{infix}tokens_in_a_step"] for infix in ("", "padded_"))
    assert 0.5 < ours / padded < 2
    assert settings["loss"]["timed_tokens"] == 16


def test_train_script_sizes_need_gpu():
    result = CliRunner().invoke(
        main, ["--only", "sizes", "--sizes", "1b", "--device", "cpu"], catch_exceptions=False
    )
    assert "1b_tokens_per_second    needs a CUDA device" in result.stdout
    assert "135m_tokens_per_second  not requested: --sizes 135m" in result.stdout


def test_train_script_missing_run_file_is_one_line(tmp_path):
    result = CliRunner().invoke(main, ["--run", str(tmp_path / "none.toml"), "--device", "cpu"])
    assert result.exit_code == 1
    assert "none.toml" in result.stderr


@pytest.mark.slow
def test_shape_measured_on_cpu():
    result = Result(bench="train")
    TrainingBenchmark(result, 2, 0.2).measure_shape(shape_task(TINY, "cpu", PLAIN))
    found = {name: value for name, (value, _) in result.figures.items()}
    assert found["135m_loss_difference"] < 0.02
    assert found["135m_state_difference"] < 5
    assert found["135m_tokens_per_second"] > 0
    assert found["135m_useful_tokens_speedup_vs_padded"] > 0
    assert found["135m_padded_efficiency"] < found["135m_packing_efficiency"] <= 100
    assert list(result.missing) == ["135m_mfu"]
    assert result.settings["135m"]["precision"] == "bfloat16"
    assert result.settings["135m"]["gigaflops_per_token"] > 0


@pytest.mark.slow  # starts processes
def test_shape_not_timed_if_paths_differ():
    result = Result(bench="train")
    benchmark = TrainingBenchmark(result, 2, 0.2, loss_tolerance=-1.0)
    benchmark.measure_shape(shape_task(TINY, "cpu", PLAIN))
    assert "differs" in result.missing["135m_tokens_per_second"]
    assert "135m_tokens_per_second" not in result.figures


@pytest.mark.slow  # starts processes
def test_fast_path_checked_on_checkpoint(task):
    task = replace(task, loop=replace(task.loop, precision="bfloat16"))
    result = Result(bench="train")
    assert TrainingBenchmark(result, 2, 0.2).check_fast_path(task, "") is None
    assert 0 < result.figures["state_difference"][0] < 5


@pytest.mark.parametrize(("name", "millions"), [("135m", 139), ("1b", 1253), ("7b", 6641)])
def test_shape_parameters(name, millions):
    matrices = count_matrices(SHAPES[name].config)
    assert round((matrices.blocks + matrices.head) / 1e6) == millions


def test_shape_model_equal_in_each_process():
    first, second = (shape_task(TINY, "cpu").language_model().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_sequences_resemble_paper():
    sequences = RandomSequences(100, 2048).next(range(32))
    counts = count(sequences)
    assert counts["tokens"] / (32 * 2048) > 0.9
    assert 700 < counts["tokens"] / counts["documents"] < 1600
    assert max(int(one.input_ids.max()) for one in sequences) < 100
    again = RandomSequences(100, 2048).next(range(32))
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(sequences, again, strict=True))


def test_documents_equal_examples():
    lengths = [5, 3, 8, 1, 8, 4]
    sequences = list(pack(examples(lengths), PackingConfig(seq_len=8)))
    found = sorted((list(ids), list(labels)) for ids, labels in documents(sequences))
    expected = [(list(one.input_ids), [IGNORE_INDEX, *one.labels[1:]]) for one in examples(lengths)]
    assert found == sorted(expected)


def test_pad_fills_to_longest():
    batch = pad(
        [(np.array([4, 5, 6]), np.array([IGNORE_INDEX, 5, 6])), (np.array([7]), np.array([7]))]
    )
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 5, 6], [7, IGNORE_INDEX, IGNORE_INDEX]]


def test_padded_efficiency_counts_longest():
    sequences = list(pack(examples([8, 6, 2, 5, 1]), PackingConfig(seq_len=8)))
    sequences.sort(key=lambda one: -one.input_ids[0])
    lengths = [len(ids) for ids, _ in documents(sequences)]
    assert lengths == [5, 1, 6, 2, 8]
    mixed = [lengths[index] for index in np.random.default_rng(0).permutation(5)]
    longest = max(mixed[:2]) + max(mixed[2:4])  # two batches of two; the last document is dropped
    assert padded_efficiency(sequences, 2) == sum(mixed[:4]) / (2 * longest)


def test_efficiency_equals_count_by_token(task):
    result, steps, size = Result(bench="train"), 3, 2
    accumulation = TrainingBenchmark(result, size, 1.0).measure_efficiency(task, steps)
    stream = task.open_stream()
    sequences = [one for _ in range(steps) for one in stream.next(task.streams)]
    real = sum(int(kind != PADDING_TASK) for one in sequences for kind in one.task_ids)
    share = 100 * real / (len(sequences) * 96)
    assert result.figures["packing_efficiency"][0] == pytest.approx(share, abs=1e-4)
    assert count(sequences)["tokens"] == real
    number = sum(1 for _ in documents(sequences))
    assert count(sequences)["documents"] == number
    assert accumulation == round(number / steps / size)


def test_padded_and_packed_loss_equal(task):
    """The stock model's own loss of padded batches is ours of packed sequences, without max-z."""
    sequences = task.open_stream().next(task.streams)
    model = task.language_model()
    total, labels = 0.0, 0
    for document in documents(sequences):
        batch = pad([document, document])
        if found := int((batch["labels"][:1, 1:] != IGNORE_INDEX).sum()):
            with torch.no_grad():
                total += float(model(**batch).loss) * found
            labels += found
    trainee = prepare_model(task, ModelConfig(), torch.float32)
    ours = trainee(Batch.from_sequences(sequences, torch.device("cpu")), len(TASKS))
    assert int(ours.counts.sum()) == labels
    assert float(ours.nll.sum()) / labels == pytest.approx(total / labels, abs=1e-5)


def test_stream_starts_over_for_each_candidate(task):
    first, second = (task.open_stream().next(task.streams) for _ in range(2))
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))


def test_longer_sequences_have_same_documents(task, run_file, shards, checkpoint_folder):
    long = checkpoint_task(run_file, shards, checkpoint_folder, 192, "cpu")
    assert (len(task.streams), len(long.streams)) == (4, 2)
    (one, _) = long.open_stream().next(long.streams)
    assert len(one.input_ids) == 192
    assert one.position_ids.max() < 96
