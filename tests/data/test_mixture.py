import json

import numpy as np
import pytest

from liquidmm.data.mixture import Mixture, Source
from liquidmm.data.packing import PADDING_TASK
from liquidmm.data.records import Message
from liquidmm.data.render import TASKS, RenderConfig, Renderer
from liquidmm.data.shard_file import Row
from liquidmm.errors import ConfigError, DataError


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
    return Renderer(sequences, RenderConfig(guidance_dropout=0.2, draw_in_chat_share=0.2))


def sources(folder):
    return [
        Source(path=folder, task="text_to_image", weight=5),
        Source(path=folder, task="image_to_text", weight=2),
        Source(path=folder, task="text", weight=2),
        Source(path=folder, task="chat", weight=1),
    ]


def rows_of(mixture, count):
    rows = [mixture.take()[0] for _ in range(count)]
    return np.stack([np.stack([r.input_ids, r.labels, r.position_ids, r.task_ids]) for r in rows])


def test_resume_is_exact(folder, renderer):
    whole = rows_of(Mixture(sources(folder), renderer, 64, 3), 50)
    first = Mixture(sources(folder), renderer, 64, 3)
    begin = rows_of(first, 20)
    state = json.loads(json.dumps(first.state()))
    assert len(json.dumps(state)) < 4000
    second = Mixture(sources(folder), renderer, 64, 3)
    second.restore(state)
    assert second.state() == state
    assert np.array_equal(whole, np.concatenate([begin, rows_of(second, 30)]))
    rows_of(first, 30)
    assert second.state() == first.state()


def test_lanes_share_the_draws_and_not_the_order(folder, sequences):
    renderer = Renderer(sequences, RenderConfig(guidance_dropout=0, draw_in_chat_share=0))
    source = [Source(path=folder, task="text_to_image")]
    mixture = Mixture(source, renderer, 64, 0, lanes=4, lookahead=1)
    keys = [key for _ in range(20) for row in mixture.take(range(4)) for key in row.keys]
    first = keys[:11]
    # Four lanes draw one after the other: the first pass is over before the second begins.
    assert sorted(first) == sorted(f"i{n}" for n in range(11))


def test_who_takes_a_lane_changes_nothing(folder, renderer):
    def rows(ranks, steps):
        """Four lanes shared by some ranks: rows of every step in the order of the lanes."""
        mixtures = [Mixture(sources(folder), renderer, 64, 3, lanes=4) for _ in range(ranks)]
        found = []
        for _ in range(steps):
            parts = [m.take(range(r, 4, ranks)) for r, m in enumerate(mixtures)]
            found.append([parts[lane % ranks][lane // ranks].input_ids for lane in range(4)])
        return np.array(found), mixtures

    alone, (one,) = rows(1, 8)
    shared, (first, second) = rows(2, 8)
    assert np.array_equal(alone, shared)
    lanes = first.state()["lanes"] | second.state()["lanes"]
    assert one.state() == first.state() | {"lanes": dict(sorted(lanes.items()))}
    # A position that two ranks left is one that four can go on from.
    whole = json.loads(json.dumps(first.state() | {"lanes": lanes}))
    for rank in range(4):
        mixture = Mixture(sources(folder), renderer, 64, 3, lanes=4)
        mixture.restore(whole)
        (row,) = mixture.take([rank])
        assert np.array_equal(row.input_ids, one.take([rank])[0].input_ids)


def test_seed_decides(folder, renderer):
    one, same, other = (
        rows_of(Mixture(sources(folder), renderer, 64, seed), 10) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_pass_shows_every_row_once_in_another_order(folder, sequences):
    renderer = Renderer(sequences, RenderConfig(guidance_dropout=0, draw_in_chat_share=0))
    mixture = Mixture([Source(path=folder, task="text_to_image")], renderer, 64, 0)
    stream = mixture._streams[0]
    orders = []
    for turn in range(3):
        draws = range(turn * 11, turn * 11 + 11)
        orders.append([int(stream.example(renderer, n).input_ids[-3]) - 26 for n in draws])
        assert sorted(orders[-1]) == list(range(11))
    assert len({tuple(order) for order in orders}) == 3


def test_weights_and_passes(folder, renderer):
    mixture = Mixture(sources(folder), renderer, 64, 0)
    rows_of(mixture, 200)
    draws = mixture.state()["lanes"]["0"]["draws"]
    total = sum(draws)
    for share, count in zip((0.5, 0.2, 0.2, 0.1), draws, strict=True):
        assert abs(count - share * total) <= 1
    assert mixture.passes == tuple(n / size for n, size in zip(draws, (11, 11, 7, 3), strict=True))
    assert mixture.passes[0] > 2
    assert mixture.fill > 0.9


def test_all_tasks_are_there_and_filled_is_counted(folder, renderer):
    mixture = Mixture(sources(folder), renderer, 64, 0)
    rows = rows_of(mixture, 40)
    assert set(np.unique(rows[:, 3])) - {PADDING_TASK} == set(range(len(TASKS)))
    assert mixture.fill == pytest.approx((rows[:, 3] != PADDING_TASK).mean())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "saved position has seed 3, this run has 4"),
        ({"length": 32}, "saved position has length 64"),
    ],
)
def test_another_position_is_refused(folder, renderer, change, words):
    state = Mixture(sources(folder), renderer, 64, 3).state()
    other = Mixture(sources(folder), renderer, **{"length": 64, "seed": 3} | change)
    with pytest.raises(DataError, match=words):
        other.restore(state)


def test_bad_sources(folder, renderer, tmp_path, write_folder):
    texts = [Row(kind="text", key="t", text="a")]
    write_folder(tmp_path / "texts", texts, codebook_size=32)
    with pytest.raises(DataError, match="with 32 codes, the checkpoint has 64"):
        Mixture([Source(path=tmp_path / "texts", task="text")], renderer, 64, 0)
    write_folder(tmp_path / "more", texts, codebook_size=64)
    with pytest.raises(DataError, match="no rows of kind chat"):
        Mixture([Source(path=tmp_path / "more", task="chat")], renderer, 64, 0)
    with pytest.raises(DataError, match="image tokenizer f00d, the checkpoint has beef"):
        Mixture(sources(folder), renderer, 64, 0, fingerprint="beef")
    with pytest.raises(ConfigError, match="sources: is empty"):
        Mixture([], renderer, 64, 0)
    with pytest.raises(ConfigError, match="weight: is 0"):
        Source(path=folder, task="text", weight=0)
    with pytest.raises(ConfigError, match="Did you mean 'chat'"):
        Source(path=folder, task="chats")


def test_a_picture_that_does_not_fit_names_the_record(folder, renderer):
    mixture = Mixture([Source(path=folder, task="chat")], renderer, 8, 0)
    with pytest.raises(DataError, match=r"c\d: \d+ ids, rows have 8"):
        mixture.take()
