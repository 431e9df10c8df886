import gc
import json
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from liquidmm.data.draws import Source
from liquidmm.data.examples import TASKS, ExampleBuilder, ExampleConfig
from liquidmm.data.mixture import TokenStream
from liquidmm.data.packing import PADDING_TASK, PackingConfig
from liquidmm.data.records import Message
from liquidmm.data.shard_file import Row
from liquidmm.errors import DataError


def grid(number):
    return np.full((2, 2), number, dtype=np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_folder):
    """11 pictures whose codes are their number, 7 texts (one longer than a row), 3 chats."""
    path = tmp_path_factory.mktemp("mixture") / "shards"
    turns = (
        Message(role="user", content="<image> what?"),
        Message(role="assistant", content="a cat"),
    )
    rows = [
        *[
            Row(kind="image_text", key=f"i{n}", captions=("a cat", "red"), pictures=(grid(n),))
            for n in range(11)
        ],
        *[Row(kind="text", key=f"t{n}", text="a red cat " * (n + 1)) for n in range(6)],
        Row(kind="text", key="long", text="blue " * 100),
        *[Row(kind="chat", key=f"c{n}", messages=turns, pictures=(grid(n),)) for n in range(3)],
    ]
    return write_folder(path, rows[:9], rows[9:], codebook_size=64)


@pytest.fixture
def renderer(sequences):
    return ExampleBuilder(sequences, ExampleConfig(guidance_dropout=0.2, draw_in_chat_share=0.2))


def sources(folder):
    return [
        Source(path=folder, task="text_to_image", weight=5),
        Source(path=folder, task="image_to_text", weight=2),
        Source(path=folder, task="text", weight=2),
        Source(path=folder, task="chat", weight=1),
    ]


PACKING = PackingConfig(length=64, window=24)


def rows_of(mixture, count, lanes=(0,)):
    """Rows as arrays, (count, lanes, 4, T)."""
    steps = [mixture.take(lanes) for _ in range(count)]
    arrays = [
        [np.stack([r.input_ids, r.labels, r.position_ids, r.task_ids]) for r in rows]
        for rows in steps
    ]
    return np.array(arrays)


@pytest.mark.parametrize("taken", [0, 1, 7, 20, 33])
def test_resume_is_exact(folder, renderer, taken):
    whole = rows_of(TokenStream(sources(folder), renderer, PACKING, 3), 50)
    first = TokenStream(sources(folder), renderer, PACKING, 3)
    begin = rows_of(first, taken)
    state = json.loads(json.dumps(first.state()))
    second = TokenStream(sources(folder), renderer, PACKING, 3)
    second.restore(state)
    assert second.state() == state
    assert second.passes == first.passes
    rest = rows_of(second, 50 - taken)
    assert np.array_equal(whole, np.concatenate([begin, rest]) if taken else rest)
    rows_of(first, 50 - taken)
    assert second.state() == first.state()


def test_the_state_is_a_few_numbers_however_long_the_run(folder, renderer):
    mixture = TokenStream(sources(folder), renderer, PACKING, 3, lanes=2)
    position = {"window": 10**12, "row": 1, "left_out": 10**9}
    mixture.restore(mixture.state() | {"lanes": {"0": position, "1": position}})
    rows_of(mixture, 30, range(2))
    lanes = mixture.state()["lanes"]
    assert lanes["0"]["window"] > 10**12
    assert all(len(json.dumps({name: lane})) < 100 for name, lane in lanes.items())
    assert mixture.passes[0] == pytest.approx(2 * 10**12 * 24 * 0.5 / 11, rel=1e-6)


def test_memory_of_opening_does_not_grow_with_rows(renderer, tmp_path, write_folder):
    def opened(rows, shards):
        """Bytes that Python and numpy hold for an open mixture with one window made."""
        texts = [Row(kind="text", key=f"t{n}", text="a red cat") for n in range(rows)]
        path = write_folder(tmp_path / f"{rows}", *[texts] * shards, codebook_size=64)
        gc.collect()
        tracemalloc.start()
        mixture = TokenStream([Source(path=path, task="text")], renderer, PACKING, 0)
        mixture.take()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert mixture.identity()["sizes"] == [rows * shards]
        return held

    opened(10, 1)  # what is made once and kept
    small, large = opened(5000, 1), opened(20_000, 1)
    assert abs(large - small) < 5000


def test_ranks_and_workers_give_the_same_stream(folder, renderer):
    def rows(ranks, workers, steps=12, state=None):
        """Four lanes shared by some ranks: rows of every step in the order of the lanes."""
        mixtures = [
            TokenStream(sources(folder), renderer, PACKING, 3, lanes=4, workers=workers)
            for _ in range(ranks)
        ]
        taken = []
        for rank, mixture in enumerate(mixtures):
            if state is not None:
                mixture.restore(state)
            taken.append(rows_of(mixture, steps, range(rank, 4, ranks)))
            mixture.close()
        lanes = {}
        for mixture in mixtures:
            lanes |= {
                name: lane
                for name, lane in mixture.state()["lanes"].items()
                if int(name) % ranks == mixtures.index(mixture)
            }
        found = np.stack([taken[lane % ranks][:, lane // ranks] for lane in range(4)], axis=1)
        return found, mixtures[0].identity() | {"lanes": dict(sorted(lanes.items()))}

    alone, state = rows(1, 0)
    halves, _ = rows(2, 0)
    ahead, _ = rows(1, 1)
    assert np.array_equal(alone, halves)
    assert np.array_equal(alone, ahead)
    assert not np.array_equal(alone[:, 0], alone[:, 1])
    # on from there: one rank, four ranks, and two workers
    rest, end = rows(1, 0, state=json.loads(json.dumps(state)))
    for ranks, workers in ((4, 0), (1, 2)):
        again, position = rows(ranks, workers, state=state)
        assert np.array_equal(rest, again)
        assert position == end


def test_lanes_share_the_draws(folder, sequences):
    renderer = ExampleBuilder(sequences, ExampleConfig(guidance_dropout=0, draw_in_chat_share=0))
    source = [Source(path=folder, task="text_to_image")]
    mixture = TokenStream(source, renderer, PackingConfig(length=64, window=11), 0, lanes=4)
    taken = [[] for _ in range(4)]
    for lane, keys in enumerate(taken):
        while len(keys) < 11:
            keys.extend(mixture.take([lane])[0].keys)
    # A window is as long as a pass here: each lane has every picture once.
    assert [sorted(keys) for keys in taken] == [sorted(f"i{n}" for n in range(11))] * 4
    assert mixture.passes == (4.0,)


def test_seed_decides(folder, renderer):
    one, same, other = (
        rows_of(TokenStream(sources(folder), renderer, PACKING, seed), 10) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_passes_and_fill(folder, renderer, caplog):
    mixture = TokenStream(sources(folder), renderer, PACKING, 0)
    rows = rows_of(mixture, 200)[:, 0]
    assert set(np.unique(rows[:, 3])) - {PADDING_TASK} == set(range(len(TASKS)))
    assert mixture.fill == pytest.approx((rows[:, 3] != PADDING_TASK).mean())
    assert mixture.fill > 0.8
    shares = [each * size for each, size in zip(mixture.passes, (11, 11, 7, 3), strict=True)]
    assert np.allclose(np.array(shares) / sum(shares), (0.5, 0.2, 0.2, 0.1))
    assert mixture.passes[0] > 2
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f"{folder} ({task}): its {size} rows come again"
        for task, size in (("text_to_image", 11), ("chat", 3), ("text", 7), ("image_to_text", 11))
    )


def test_what_is_too_long_stops_the_run_or_is_counted(folder, renderer, caplog):
    pictures = [*sources(folder)[:1], *sources(folder)[3:]]
    mixture = TokenStream(pictures, renderer, PackingConfig(length=14, window=24), 0)
    with pytest.raises(DataError, match=r"[ic]\d+: \d+ ids, rows have 14"):
        rows_of(mixture, 20)
    packing = PackingConfig(length=14, window=24, too_long="leave_out")
    mixture = TokenStream(pictures, renderer, packing, 0)
    rows_of(mixture, 60)
    state = mixture.state()
    count = mixture.left_out
    assert count == state["lanes"]["0"]["left_out"] > 5
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 5
    assert re.fullmatch(r"[ic]\d+: left out, \d+ ids do not fit a row", told[0])
    assert told[-1].endswith("; further ones are only counted")
    again = TokenStream(pictures, renderer, packing, 0)
    again.restore(state)
    assert again.left_out == count
    assert np.array_equal(rows_of(again, 5), rows_of(mixture, 5))
    assert again.left_out == mixture.left_out
    none = TokenStream(pictures, renderer, PackingConfig(length=4, too_long="leave_out"), 0)
    with pytest.raises(DataError, match="all of 512 examples are longer than 4 ids"):
        none.take()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "saved position has seed 3, this run has 4"),
        ({"packing": replace(PACKING, length=32)}, "saved position has length 64"),
        ({"packing": replace(PACKING, window=12)}, "saved position has window 24"),
        ({"lanes": 2}, "saved position has lanes_in_all 1"),
    ],
)
def test_another_position_is_refused(folder, renderer, change, words):
    state = TokenStream(sources(folder), renderer, PACKING, 3).state()
    other = TokenStream(sources(folder), renderer, **{"packing": PACKING, "seed": 3} | change)
    with pytest.raises(DataError, match=words):
        other.restore(state)


def test_a_flipped_bit_is_found_while_reading(renderer, tmp_path, write_folder):
    rows = [Row(kind="image_text", key="i", captions=("red",), pictures=(grid(5),))]
    folder = write_folder(tmp_path / "out", rows, codebook_size=64)
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    damaged = whole.replace(grid(5).tobytes(), grid(4).tobytes())
    assert damaged != whole
    path.write_bytes(damaged)
    mixture = TokenStream([Source(path=folder, task="image_to_text")], renderer, PACKING, 0)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: row 0 is damaged"):
        mixture.take()
