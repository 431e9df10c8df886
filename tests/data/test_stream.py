import gc
import json
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from liquidmm.data.examples import TASKS, ExampleBuilder, ExampleConfig
from liquidmm.data.packing import PADDING_TASK, PackingConfig
from liquidmm.data.records import Message
from liquidmm.data.samples import Sample
from liquidmm.data.stream import Source, TokenStream
from liquidmm.errors import DataError


def codes(number):
    return np.full((2, 2), number, dtype=np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_folder):
    """11 images whose codes are their number, 7 texts (one is too long), 3 chats."""
    path = tmp_path_factory.mktemp("stream") / "shards"
    turns = (
        Message(role="user", content="<image> what?"),
        Message(role="assistant", content="a cat"),
    )
    samples = [
        *[
            Sample(
                kind="image_text", key=f"i{n}", captions=("a cat", "red"), image_codes=(codes(n),)
            )
            for n in range(11)
        ],
        *[Sample(kind="text", key=f"t{n}", text="a red cat " * (n + 1)) for n in range(6)],
        Sample(kind="text", key="long", text="blue " * 100),
        *[
            Sample(kind="chat", key=f"c{n}", messages=turns, image_codes=(codes(n),))
            for n in range(3)
        ],
    ]
    return write_folder(path, samples[:9], samples[9:], codebook_size=64)


@pytest.fixture
def builder(sequences):
    return ExampleBuilder(sequences, ExampleConfig(caption_dropout=0.2, chat_format_prob=0.2))


def sources(folder):
    return [
        Source(path=folder, task="text_to_image", weight=5),
        Source(path=folder, task="image_to_text", weight=2),
        Source(path=folder, task="text", weight=2),
        Source(path=folder, task="chat", weight=1),
    ]


PACKING = PackingConfig(seq_len=64, packing_buffer=24)


def sequences_of(stream, count, streams=(0,)):
    """Sequences as arrays, (count, streams, 4, T)."""
    steps = [stream.next(streams) for _ in range(count)]
    arrays = [
        [np.stack([s.input_ids, s.labels, s.position_ids, s.task_ids]) for s in sequences]
        for sequences in steps
    ]
    return np.array(arrays)


@pytest.mark.parametrize("taken", [0, 1, 7, 20, 33])
def test_stream_resumes_exactly(folder, builder, taken):
    whole = sequences_of(TokenStream(sources(folder), builder, PACKING, 3), 50)
    first = TokenStream(sources(folder), builder, PACKING, 3)
    begin = sequences_of(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    second = TokenStream(sources(folder), builder, PACKING, 3)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert second.epochs == first.epochs
    rest = sequences_of(second, 50 - taken)
    assert np.array_equal(whole, np.concatenate([begin, rest]) if taken else rest)
    sequences_of(first, 50 - taken)
    assert second.state_dict() == first.state_dict()


def test_stream_state_stays_small_in_long_runs(folder, builder):
    stream = TokenStream(sources(folder), builder, PACKING, 3, num_streams=2)
    position = {"buffer": 10**12, "index": 1, "dropped": 10**9}
    stream.load_state_dict(stream.state_dict() | {"streams": {"0": position, "1": position}})
    sequences_of(stream, 30, range(2))
    positions = stream.state_dict()["streams"]
    assert positions["0"]["buffer"] > 10**12
    assert all(len(json.dumps({name: each})) < 100 for name, each in positions.items())
    assert stream.epochs[0] == pytest.approx(2 * 10**12 * 24 * 0.5 / 11, rel=1e-6)


def test_stream_memory_does_not_grow_with_samples(builder, tmp_path, write_folder):
    def opened(count, shards):
        """Bytes that Python and numpy hold for an open stream with one buffer packed."""
        texts = [Sample(kind="text", key=f"t{n}", text="a red cat") for n in range(count)]
        path = write_folder(tmp_path / f"{count}", *[texts] * shards, codebook_size=64)
        gc.collect()
        tracemalloc.start()
        stream = TokenStream([Source(path=path, task="text")], builder, PACKING, 0)
        stream.next()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stream.fingerprint()["sizes"] == [count * shards]
        return held

    opened(10, 1)  # fills the caches
    small, large = opened(5000, 1), opened(20_000, 1)
    assert abs(large - small) < 5000


@pytest.fixture
def read(folder, builder):
    def read_streams(ranks, workers, state=None):
        """Read four streams with some ranks: the sequences of 12 steps, and the position."""
        readers = [
            TokenStream(sources(folder), builder, PACKING, 3, num_streams=4, num_workers=workers)
            for _ in range(ranks)
        ]
        taken = []
        for rank, stream in enumerate(readers):
            if state is not None:
                stream.load_state_dict(state)
            taken.append(sequences_of(stream, 12, range(rank, 4, ranks)))
            stream.close()
        positions = {}
        for rank, stream in enumerate(readers):
            streams = stream.state_dict()["streams"]
            positions |= {name: each for name, each in streams.items() if int(name) % ranks == rank}
        found = np.stack([taken[each % ranks][:, each // ranks] for each in range(4)], axis=1)
        return found, readers[0].fingerprint() | {"streams": dict(sorted(positions.items()))}

    return read_streams


def check_same_before_and_after_resume(read, ranks, workers):
    alone, state = read(1, 0)
    shared, position = read(ranks, workers)
    assert np.array_equal(alone, shared)
    assert position == state
    rest, end = read(1, 0, json.loads(json.dumps(state)))
    shared, position = read(ranks, workers, state)
    assert np.array_equal(rest, shared)
    assert position == end
    assert not np.array_equal(alone[:, 0], alone[:, 1])


@pytest.mark.parametrize("ranks", [2, 4])
def test_stream_is_the_same_for_any_ranks(read, ranks):
    check_same_before_and_after_resume(read, ranks, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_stream_is_the_same_for_any_workers(read, workers):
    check_same_before_and_after_resume(read, 1, workers)


def test_streams_share_the_samples(folder, sequences):
    builder = ExampleBuilder(sequences, ExampleConfig(caption_dropout=0, chat_format_prob=0))
    source = [Source(path=folder, task="text_to_image")]
    stream = TokenStream(
        source, builder, PackingConfig(seq_len=64, packing_buffer=11), 0, num_streams=4
    )
    taken = [[] for _ in range(4)]
    for number, keys in enumerate(taken):
        while len(keys) < 11:
            keys.extend(stream.next([number])[0].keys)
    # A buffer is as long as an epoch here: each stream has every image once.
    assert [sorted(keys) for keys in taken] == [sorted(f"i{n}" for n in range(11))] * 4
    assert stream.epochs == (4.0,)


def test_stream_depends_on_the_seed(folder, builder):
    one, same, other = (
        sequences_of(TokenStream(sources(folder), builder, PACKING, seed), 10) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_stream_reports_epochs_and_packing_efficiency(folder, builder, caplog):
    stream = TokenStream(sources(folder), builder, PACKING, 0)
    arrays = sequences_of(stream, 200)[:, 0]
    assert set(np.unique(arrays[:, 3])) - {PADDING_TASK} == set(range(len(TASKS)))
    assert stream.packing_efficiency == pytest.approx((arrays[:, 3] != PADDING_TASK).mean())
    assert stream.packing_efficiency > 0.8
    shares = [each * size for each, size in zip(stream.epochs, (11, 11, 7, 3), strict=True)]
    assert np.allclose(np.array(shares) / sum(shares), (0.5, 0.2, 0.2, 0.1))
    assert stream.epochs[0] > 2
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f"{folder} ({task}): its {size} samples start to repeat"
        for task, size in (("text_to_image", 11), ("chat", 3), ("text", 7), ("image_to_text", 11))
    )


def test_stream_overlong_image_raises_or_is_dropped(folder, builder, caplog):
    images = [*sources(folder)[:1], *sources(folder)[3:]]
    stream = TokenStream(images, builder, PackingConfig(seq_len=14, packing_buffer=24), 0)
    with pytest.raises(DataError, match=r"[ic]\d+: \d+ tokens.* 14 fit"):
        sequences_of(stream, 20)
    packing = PackingConfig(seq_len=14, packing_buffer=24, overlong="drop")
    stream = TokenStream(images, builder, packing, 0)
    sequences_of(stream, 60)
    state = stream.state_dict()
    count = stream.dropped
    assert count == state["streams"]["0"]["dropped"] > 5
    named = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert len(named) == 5
    assert re.fullmatch(r"[ic]\d+: dropped.* \d+ tokens.* 14", named[0])
    assert named[-1].endswith("; further records are only counted")
    again = TokenStream(images, builder, packing, 0)
    again.load_state_dict(state)
    assert again.dropped == count
    assert np.array_equal(sequences_of(again, 5), sequences_of(stream, 5))
    assert again.dropped == stream.dropped
    none = TokenStream(images, builder, PackingConfig(seq_len=4, overlong="drop"), 0)
    with pytest.raises(DataError, match="all 512 examples .*4 tokens.*seq_len"):
        none.next()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed 3.*4"),
        ({"packing": replace(PACKING, seq_len=32)}, "seq_len 64.*32"),
        ({"packing": replace(PACKING, packing_buffer=12)}, "packing_buffer 24.*12"),
        ({"num_streams": 2}, "num_streams 1.*2"),
    ],
)
def test_stream_state_of_other_settings_is_rejected(folder, builder, change, words):
    state = TokenStream(sources(folder), builder, PACKING, 3).state_dict()
    other = TokenStream(sources(folder), builder, **{"packing": PACKING, "seed": 3} | change)
    with pytest.raises(DataError, match=words):
        other.load_state_dict(state)


def test_stream_damaged_sample_is_named(builder, tmp_path, write_folder):
    samples = [Sample(kind="image_text", key="i", captions=("red",), image_codes=(codes(5),))]
    folder = write_folder(tmp_path / "out", samples, codebook_size=64)
    path = folder / "shard-00000.arrow"
    whole = path.read_bytes()
    damaged = whole.replace(codes(5).tobytes(), codes(4).tobytes())
    assert damaged != whole
    path.write_bytes(damaged)
    stream = TokenStream([Source(path=folder, task="image_to_text")], builder, PACKING, 0)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: sample 0 is damaged"):
        stream.next()
