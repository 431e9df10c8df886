import pytest

from liquidmm.export.pair_queue import PATIENCE, PairQueue, Room, blocks_of
from liquidmm.export.pairs import Half
from liquidmm.generate.sampling import SamplingConfig


def half(pair, conditional=True, guidance=3.0):
    sampling = SamplingConfig(guidance=guidance)
    return Half(pair=pair, conditional=conditional, codes=4, seed=0, sampling=sampling)


@pytest.fixture
def queue():
    return PairQueue()


def left(queue, now=0.0, fits=True):
    return list(queue.leave(lambda pair: fits, now))


def test_the_first_half_waits_for_the_second(queue):
    queue.add("c", half("a"), 0.0)
    assert (left(queue), len(queue)) == ([], 1)
    queue.add("text", None, 1.0)
    queue.add("u", half("a", conditional=False), 2.0)
    assert len(queue) == 3
    assert left(queue) == ["text", "c", "u"]
    assert len(queue) == 0


def test_halves_of_several_pairs_come_in_any_order(queue):
    for name, pair, conditional in [
        ("1u", "1", False), ("2c", "2", True), ("1c", "1", True), ("2u", "2", False)
    ]:  # fmt: skip
        queue.add(name, half(pair, conditional), 0.0)
    assert left(queue) == ["1u", "1c", "2c", "2u"]


def test_a_guidance_of_one_waits_for_nobody(queue):
    queue.add("c", half("a", guidance=1.0), 0.0)
    assert left(queue) == ["c"]


def test_a_lone_half_leaves_when_patience_ends(queue):
    queue.add("c", half("a"), 100.0)
    assert left(queue, now=100.0 + PATIENCE - 0.01) == []
    assert left(queue, now=100.0 + PATIENCE) == ["c"]


def test_nobody_passes_a_pair_that_finds_no_room(queue):
    queue.add("c", half("a"), 0.0)
    queue.add("u", half("a", conditional=False), 0.0)
    queue.add("text", None, 0.0)
    assert left(queue, fits=False) == []
    assert left(queue) == ["c", "u", "text"]


def test_room_is_asked_for_after_what_left_before_has_started(queue):
    for pair in "ab":
        queue.add(pair + "c", half(pair), 0.0)
        queue.add(pair + "u", half(pair, conditional=False), 0.0)
    started = []
    for request in queue.leave(lambda pair: len(started) < 2, 0.0):
        started.append(request)  # noqa: PERF402 (`fits` looks at it)
    assert started == ["ac", "au"]
    assert len(queue) == 2


def test_removed_requests_do_not_leave(queue):
    queue.add("c", half("a"), 0.0)
    for name in ("bc", "bu"):
        queue.add(name, half("b", conditional=name == "bc"), 0.0)
    queue.add("text", None, 0.0)
    assert queue.remove(lambda request: request in ("c", "bu")) == ["c", "bu"]
    assert left(queue) == ["bc", "text"]
    assert queue.remove(lambda request: True) == []


def test_room():
    room = Room(rows=2, ids=10, blocks=4)
    assert room.holds(room)
    assert room.holds(Room(rows=1, ids=4, blocks=2) + Room(rows=1, ids=6, blocks=2))
    for more in ({"rows": 3}, {"ids": 11}, {"blocks": 5}):
        assert not room.holds(Room(**{"rows": 0, "ids": 0, "blocks": 0} | more))


@pytest.mark.parametrize(
    ("ids", "groups", "blocks"), [(1, 1, 1), (16, 1, 1), (17, 1, 2), (33, 2, 6)]
)
def test_blocks(ids, groups, blocks):
    assert blocks_of(ids, 16, groups) == blocks
