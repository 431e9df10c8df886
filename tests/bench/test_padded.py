"""PackedSequence rows and padded batches: the same documents, the same loss, the same counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from liquidmm.bench.ours import counts_of, make_trainee
from liquidmm.bench.padded import documents, padded, padded_share
from liquidmm.bench.report import Result
from liquidmm.bench.speed import measure_efficiency
from liquidmm.bench.train import icon_job
from liquidmm.data.examples import IGNORE_INDEX, TASKS, Example
from liquidmm.data.packing import PADDING_TASK, PackingConfig, pack
from liquidmm.train.batch import Batch
from liquidmm.train.model import ModelConfig


def examples(lengths):
    for place, length in enumerate(lengths):
        ids = np.arange(10 * place, 10 * place + length, dtype=np.int32)
        yield Example(input_ids=ids, labels=ids.copy(), task="text")


def test_documents_are_the_examples():
    lengths = [5, 3, 8, 1, 8, 4]
    rows = list(pack(examples(lengths), PackingConfig(seq_len=8)))
    found = sorted((list(ids), list(labels)) for ids, labels in documents(rows))
    wanted = sorted(
        (list(each.input_ids), [IGNORE_INDEX, *each.labels[1:]]) for each in examples(lengths)
    )
    assert found == wanted


def test_padding():
    batch = padded(
        [(np.array([4, 5, 6]), np.array([IGNORE_INDEX, 5, 6])), (np.array([7]), np.array([7]))]
    )
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 5, 6], [7, IGNORE_INDEX, IGNORE_INDEX]]


def test_padded_share_is_a_plain_count():
    rows = list(pack(examples([8, 6, 2, 5, 1]), PackingConfig(seq_len=8)))
    rows.sort(key=lambda row: -row.input_ids[0])
    lengths = [len(ids) for ids, _ in documents(rows)]
    assert lengths == [5, 1, 6, 2, 8]
    mixed = [lengths[place] for place in np.random.default_rng(0).permutation(5)]
    # two batches of two; the last one is left over
    longest = max(mixed[:2]) + max(mixed[2:4])
    assert padded_share(rows, 2) == sum(mixed[:4]) / (2 * longest)


def test_efficiency_equals_a_count_position_by_position(config):
    job = icon_job(config, "cpu")
    result = Result(bench="train")
    accumulate = measure_efficiency(result, job, config.steps, config.sequences)
    stream = job.rows()
    rows = [row for _ in range(config.steps) for row in stream.next(job.lanes)]
    real = sum(int(task != PADDING_TASK) for row in rows for task in row.task_ids)
    share = 100 * real / (len(rows) * 96)
    assert result.figures["packing_efficiency"].value == pytest.approx(share, abs=1e-4)

    found, size = list(documents(rows)), config.sequences
    mixed = [found[place] for place in np.random.default_rng(0).permutation(len(found))]
    starts = range(0, len(mixed) - size + 1, size)
    masks = [padded(mixed[start : start + size])["attention_mask"] for start in starts]
    share = 100 * sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert result.figures["padded_efficiency"].value == pytest.approx(share, abs=1e-4)
    count = sum(1 for _ in documents(rows))
    assert counts_of(rows)["documents"] == count
    assert counts_of(rows)["tokens"] == real == sum(len(ids) for ids, _ in documents(rows))
    assert accumulate == round(count / config.steps / config.sequences)


def test_both_sides_compute_the_same_loss(config):
    """The stock model's own loss of padded batches is ours of packed rows, without max-z."""
    job = icon_job(config, "cpu")
    rows = job.rows().next(job.lanes)
    model = job.language_model()
    total, count = 0.0, 0
    for document in documents(rows):
        batch = padded([document, document])
        labels = int((batch["labels"][:1, 1:] != IGNORE_INDEX).sum())
        if labels:
            with torch.no_grad():
                total += float(model(**batch).loss) * labels
            count += labels
    trainee = make_trainee(job, ModelConfig(), torch.float32)
    ours = trainee(Batch.of(rows, torch.device("cpu")), len(TASKS))
    assert int(ours.counts.sum()) == count
    assert float(ours.nll.sum()) / count == pytest.approx(total / count, abs=1e-5)


def test_the_stream_begins_anew_for_each_side(config):
    job = icon_job(config, "cpu")
    first, second = (job.rows().next(job.lanes) for _ in range(2))
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))


def test_longer_rows_hold_the_same_sequences(config):
    short = icon_job(config, "cpu")
    long = icon_job(replace(config, length=192), "cpu")
    assert (len(short.lanes), len(long.lanes)) == (4, 2)
    assert long.source.data.packing.document_limit == short.source.data.length == 96
    (row, _) = long.rows().next(long.lanes)
    assert len(row.input_ids) == 192
    assert row.position_ids.max() < 96
