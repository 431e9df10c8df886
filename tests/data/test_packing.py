import numpy as np
import pytest

from liquidmm.data.examples import IGNORE, TASKS, Example
from liquidmm.data.packing import PADDING_TASK, PackingConfig, cut, pack
from liquidmm.errors import ConfigError, DataError


def example(first, size, task="text", trained_from=0, splittable=False):
    ids = np.arange(first, first + size, dtype=np.int32)
    labels = np.where(np.arange(size) >= trained_from, ids, IGNORE).astype(np.int32)
    return Example(input_ids=ids, labels=labels, task=task, key=f"r{first}", splittable=splittable)


def test_one_row_written_out():
    examples = [example(10, 3), example(20, 4, "chat", trained_from=2)]
    (row,) = pack(examples, PackingConfig(length=10, context=4), pad_id=9)
    x = IGNORE
    # the longest comes first, and the first id of a document is never learnt
    assert row.input_ids.tolist() == [20, 21, 22, 23, 10, 11, 12, 9, 9, 9]
    assert row.labels.tolist() == [x, x, 22, 23, x, 11, 12, x, x, x]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    chat = TASKS.index("chat")
    assert row.task_ids.tolist() == [chat, chat, chat, chat, 0, 0, 0, *[PADDING_TASK] * 3]
    assert row.filled == 7
    assert row.keys == ("r20", "r10")
    for array in (row.input_ids, row.labels, row.position_ids, row.task_ids):
        assert array.dtype == np.int32


def test_padding_has_positions_that_the_model_has():
    (row,) = pack([example(10, 3)], PackingConfig(length=10, context=4))
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]


def test_best_fit_the_longest_first():
    examples = [example(100, 5), example(200, 2), example(300, 6), example(400, 5), example(500, 3)]
    rows = sorted(row.keys for row in pack(examples, PackingConfig(length=10)))
    assert rows == [("r100", "r400"), ("r200",), ("r300", "r500")]
    rows = sorted(row.keys for row in pack([*examples, example(600, 1)], PackingConfig(length=10)))
    assert rows == [("r100", "r400"), ("r200",), ("r300", "r500", "r600")]


def test_the_seed_decides_the_order_of_the_rows_alone():
    examples = [example(100 * n, 7) for n in range(20)]
    config = PackingConfig(length=10)
    orders = [[row.keys for row in pack(examples, config, seed=(seed,))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_every_id_comes_out_once():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 90, 600)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    examples = [
        example(int(a), int(n), splittable=n % 3 == 0) for a, n in zip(starts, sizes, strict=True)
    ]
    rows = list(pack(examples, PackingConfig(length=128), pad_id=-1))
    found = np.concatenate([row.input_ids[row.task_ids != PADDING_TASK] for row in rows])
    assert sorted(found.tolist()) == list(range(int(sizes.sum())))
    assert sum(row.filled for row in rows) / (128 * len(rows)) > 0.99
    for row in rows:
        begins = np.flatnonzero(row.position_ids == 0)
        assert (row.labels[begins] == IGNORE).all()
        real = row.task_ids != PADDING_TASK
        assert (np.diff(row.input_ids)[real[1:] & (row.position_ids[1:] > 0)] == 1).all()


def test_text_fills_the_ends_of_rows_and_pictures_are_never_split():
    pictures = [example(1000 * n, 70) for n in range(1, 11)]
    texts = [example(100_000 * n, 90, splittable=True) for n in range(1, 4)]
    rows = list(pack([*pictures, *texts], PackingConfig(length=100)))
    assert sorted(row.filled for row in rows) == [70] + [100] * 9
    for row in rows:
        assert row.position_ids.tolist() == [*range(70), *range(30)]
    # neither a part nor a rest is shorter than 16 ids
    rows = list(
        pack([example(1000, 80), example(100, 35, splittable=True)], PackingConfig(length=100))
    )
    assert sorted(row.filled for row in rows) == [16, 99]
    rows = list(
        pack([example(1000, 90), example(100, 35, splittable=True)], PackingConfig(length=100))
    )
    assert sorted(row.filled for row in rows) == [35, 90]


def test_what_is_longer_than_a_sequence():
    config = PackingConfig(length=20, context=10)
    pieces = cut(example(0, 25, splittable=True), config)
    assert [piece.input_ids.tolist() for piece in pieces] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert all((piece.labels == piece.input_ids).all() for piece in pieces)
    whole = example(0, 10)
    assert cut(whole, config) == [whole]
    with pytest.raises(DataError, match=r"r7: 11 ids, rows have 10.*data\.too_long"):
        pack([whole, example(7, 11)], config)
    config = PackingConfig(length=20, context=10, too_long="leave_out")
    window = pack([example(7, 11), whole, example(50, 12), example(60, 30)], config)
    assert [row.keys for row in window] == [("r0",)]
    assert window.left_out == (("r7", 11), ("r50", 12), ("r60", 30))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"length": 0}, "length: must be at least 1"),
        ({"length": 8, "context": 9}, r"context: must be from 0 to the length of a row, 8 \(9\)"),
        ({"length": 8, "window": 0}, "window: must be at least 1"),
    ],
)
def test_config_is_checked(values, words):
    with pytest.raises(ConfigError, match=words):
        PackingConfig(**values)
