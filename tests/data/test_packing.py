import numpy as np
import pytest

from liquidmm.config import from_dict
from liquidmm.data.examples import IGNORE_INDEX, TASKS, Example
from liquidmm.data.packing import PADDING_TASK, PackingConfig, pack, split
from liquidmm.errors import ConfigError, DataError


def example(first, size, task="text", trained_from=0, can_split=False):
    ids = np.arange(first, first + size, dtype=np.int32)
    labels = np.where(np.arange(size) >= trained_from, ids, IGNORE_INDEX).astype(np.int32)
    return Example(input_ids=ids, labels=labels, task=task, key=f"r{first}", can_split=can_split)


def test_pack_one_sequence_written_out():
    examples = [example(10, 3), example(20, 4, "chat", trained_from=2)]
    (sequence,) = pack(examples, PackingConfig(seq_len=10, max_document_tokens=4), pad_id=9)
    x = IGNORE_INDEX
    # the longest comes first, and the first token of a document has no label
    assert sequence.input_ids.tolist() == [20, 21, 22, 23, 10, 11, 12, 9, 9, 9]
    assert sequence.labels.tolist() == [x, x, 22, 23, x, 11, 12, x, x, x]
    assert sequence.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    chat = TASKS.index("chat")
    assert sequence.task_ids.tolist() == [chat, chat, chat, chat, 0, 0, 0, *[PADDING_TASK] * 3]
    assert sequence.num_tokens == 7
    assert sequence.keys == ("r20", "r10")
    for array in (sequence.input_ids, sequence.labels, sequence.position_ids, sequence.task_ids):
        assert array.dtype == np.int32


def test_pack_padding_positions_stay_within_document_limit():
    (sequence,) = pack([example(10, 3)], PackingConfig(seq_len=10, max_document_tokens=4))
    assert sequence.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]


def test_pack_fills_by_best_fit_longest_first():
    examples = [example(100, 5), example(200, 2), example(300, 6), example(400, 5), example(500, 3)]
    sequences = sorted(sequence.keys for sequence in pack(examples, PackingConfig(seq_len=10)))
    assert sequences == [("r100", "r400"), ("r200",), ("r300", "r500")]
    sequences = sorted(
        sequence.keys for sequence in pack([*examples, example(600, 1)], PackingConfig(seq_len=10))
    )
    assert sequences == [("r100", "r400"), ("r200",), ("r300", "r500", "r600")]


def test_pack_seed_changes_only_the_order():
    examples = [example(100 * n, 7) for n in range(20)]
    config = PackingConfig(seq_len=10)
    orders = [
        [sequence.keys for sequence in pack(examples, config, seed=(seed,))] for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_pack_keeps_every_token_once():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 90, 600)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    examples = [
        example(int(a), int(n), can_split=n % 3 == 0) for a, n in zip(starts, sizes, strict=True)
    ]
    sequences = list(pack(examples, PackingConfig(seq_len=128), pad_id=-1))
    found = np.concatenate(
        [sequence.input_ids[sequence.task_ids != PADDING_TASK] for sequence in sequences]
    )
    assert sorted(found.tolist()) == list(range(int(sizes.sum())))
    assert sum(sequence.num_tokens for sequence in sequences) / (128 * len(sequences)) > 0.99
    for sequence in sequences:
        begins = np.flatnonzero(sequence.position_ids == 0)
        assert (sequence.labels[begins] == IGNORE_INDEX).all()
        real = sequence.task_ids != PADDING_TASK
        assert (np.diff(sequence.input_ids)[real[1:] & (sequence.position_ids[1:] > 0)] == 1).all()


def test_pack_splits_text_at_the_end_and_never_images():
    images = [example(1000 * n, 70) for n in range(1, 11)]
    texts = [example(100_000 * n, 90, can_split=True) for n in range(1, 4)]
    sequences = list(pack([*images, *texts], PackingConfig(seq_len=100)))
    assert sorted(sequence.num_tokens for sequence in sequences) == [70] + [100] * 9
    for sequence in sequences:
        assert sequence.position_ids.tolist() == [*range(70), *range(30)]
    # neither a part nor a rest is shorter than 16 tokens
    sequences = list(
        pack([example(1000, 80), example(100, 35, can_split=True)], PackingConfig(seq_len=100))
    )
    assert sorted(sequence.num_tokens for sequence in sequences) == [16, 99]
    sequences = list(
        pack([example(1000, 90), example(100, 35, can_split=True)], PackingConfig(seq_len=100))
    )
    assert sorted(sequence.num_tokens for sequence in sequences) == [35, 90]


def test_pack_overlong_text_is_split_and_images_rejected_or_dropped():
    config = PackingConfig(seq_len=20, max_document_tokens=10)
    pieces = split(example(0, 25, can_split=True), config)
    assert [piece.input_ids.tolist() for piece in pieces] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    assert all((piece.labels == piece.input_ids).all() for piece in pieces)
    whole = example(0, 10)
    assert split(whole, config) == [whole]
    with pytest.raises(DataError, match=r"r7: 11 tokens.* 10 fit.*data\.overlong"):
        pack([whole, example(7, 11)], config)
    config = PackingConfig(seq_len=20, max_document_tokens=10, overlong="drop")
    buffer = pack([example(7, 11), whole, example(50, 12), example(60, 30)], config)
    assert [sequence.keys for sequence in buffer] == [("r0",)]
    assert buffer.dropped == (("r7", 11), ("r50", 12), ("r60", 30))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seq_len": 0}, "seq_len: .*1.*0"),
        ({"seq_len": 8, "max_document_tokens": 9}, r"max_document_tokens: .*8.*9"),
        ({"seq_len": 8, "packing_buffer": 0}, "packing_buffer: .*1.*0"),
    ],
)
def test_config_out_of_range_is_rejected(values, words):
    with pytest.raises(ConfigError, match=words):
        PackingConfig(**values)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("length", "seq_len"),
        ("context", "max_document_tokens"),
        ("window", "packing_buffer"),
        ("too_long", "overlong"),
    ],
)
def test_config_old_keys_suggest_new_ones(old, new):
    with pytest.raises(ConfigError, match=rf"{old}: unknown key.*'{new}'"):
        from_dict(PackingConfig, {old: 8}, "run.toml")
