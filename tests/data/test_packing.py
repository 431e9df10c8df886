import numpy as np
import pytest

from liquidmm.data.packing import PADDING_TASK, Packer, pack, split
from liquidmm.data.render import IGNORE, TASKS, Example
from liquidmm.errors import DataError


def example(first, size, task="text", trained_from=0, splittable=True):
    ids = np.arange(first, first + size, dtype=np.int32)
    labels = np.where(np.arange(size) >= trained_from, ids, IGNORE).astype(np.int32)
    return Example(input_ids=ids, labels=labels, task=task, key=f"r{first}", splittable=splittable)


def test_one_row_written_out():
    rows = list(pack([example(10, 3), example(20, 4, "chat", trained_from=2)], 10, pad_id=9))
    assert len(rows) == 1
    row = rows[0]
    x = IGNORE
    # the oldest comes first, and the first id of a document is never learnt
    assert row.input_ids.tolist() == [10, 11, 12, 20, 21, 22, 23, 9, 9, 9]
    assert row.labels.tolist() == [x, 11, 12, x, x, 22, 23, x, x, x]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]
    chat = TASKS.index("chat")
    assert row.task_ids.tolist() == [0, 0, 0, chat, chat, chat, chat, *[PADDING_TASK] * 3]
    assert row.filled == 7
    for array in (row.input_ids, row.labels, row.position_ids, row.task_ids):
        assert array.dtype == np.int32


def test_best_fit_takes_the_largest_that_fits():
    examples = [example(100, 5), example(200, 2), example(300, 6), example(400, 5), example(500, 3)]
    rows = [row.input_ids.tolist() for row in pack(examples, 10)]
    assert [row[0] for row in rows] == [100, 200, 500]
    assert rows[0][5] == 400
    assert rows[1][2] == 300


def test_every_id_comes_out_once():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 90, 300)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    examples = [example(int(a), int(n)) for a, n in zip(starts, sizes, strict=True)]
    rows = list(pack(examples, 128, pad_id=-1))
    found = np.concatenate([row.input_ids[row.task_ids != PADDING_TASK] for row in rows])
    assert sorted(found.tolist()) == list(range(int(sizes.sum())))
    assert sum(row.filled for row in rows) / (128 * len(rows)) > 0.97
    for row in rows:
        starts_here = np.flatnonzero(row.position_ids == 0)
        assert (row.labels[starts_here] == IGNORE).all()


def test_long_text_is_cut_and_pictures_are_not():
    pieces = split(example(0, 25), 10)
    assert [piece.input_ids.tolist() for piece in pieces] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert all((piece.labels == piece.input_ids).all() for piece in pieces)
    whole = example(0, 10, splittable=False)
    assert split(whole, 10) == [whole]
    with pytest.raises(DataError, match="r7: 11 ids, rows have 10"):
        split(example(7, 11, splittable=False), 10)
    with pytest.raises(DataError, match="r7: 11 ids, rows have 10"):
        Packer(10).add(None, example(7, 11))


def test_tickets_tell_what_waits():
    packer = Packer(10, lookahead=3)
    for ticket, size in (("a", 6), ("b", 7), ("c", 4)):
        assert not packer.full
        packer.add(ticket, example(0, size))
    assert packer.full
    packer.take()
    assert packer.tickets == ["b"]
    assert len(packer) == 1
