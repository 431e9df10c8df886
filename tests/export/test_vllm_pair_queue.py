import pytest

from liquidmm.export.vllm_pair_queue import PAIR_TIMEOUT, Capacity, PairQueue
from liquidmm.export.vllm_pairs import GuidedRequest
from liquidmm.generate.sampling import SamplingConfig


def guided(pair, conditional=True, guidance=3.0):
    sampling = SamplingConfig(guidance=guidance)
    return GuidedRequest(pair=pair, conditional=conditional, codes=4, seed=0, sampling=sampling)


@pytest.fixture
def queue():
    return PairQueue()


def ready(queue, now=0.0, fits=True):
    return list(queue.pop_ready(lambda pair: fits, now))


def test_queue_request_waits_for_partner(queue):
    queue.add("c", guided("a"), 0.0)
    assert (ready(queue), len(queue)) == ([], 1)
    queue.add("text", None, 1.0)
    queue.add("u", guided("a", conditional=False), 2.0)
    assert len(queue) == 3
    assert ready(queue) == ["text", "c", "u"]
    assert len(queue) == 0


def test_queue_pairs_interleaved_leave_together(queue):
    for name, pair, conditional in [
        ("1u", "1", False), ("2c", "2", True), ("1c", "1", True), ("2u", "2", False)
    ]:  # fmt: skip
        queue.add(name, guided(pair, conditional), 0.0)
    assert ready(queue) == ["1u", "1c", "2c", "2u"]


def test_queue_guidance_one_leaves_at_once(queue):
    queue.add("c", guided("a", guidance=1.0), 0.0)
    assert ready(queue) == ["c"]


def test_queue_single_request_leaves_after_timeout(queue):
    queue.add("c", guided("a"), 100.0)
    assert ready(queue, now=100.0 + PAIR_TIMEOUT - 0.01) == []
    assert ready(queue, now=100.0 + PAIR_TIMEOUT) == ["c"]


def test_queue_pair_without_capacity_blocks_later_requests(queue):
    queue.add("c", guided("a"), 0.0)
    queue.add("u", guided("a", conditional=False), 0.0)
    queue.add("text", None, 0.0)
    assert ready(queue, fits=False) == []
    assert ready(queue) == ["c", "u", "text"]


def test_queue_fits_called_after_earlier_requests_started(queue):
    for pair in "ab":
        queue.add(pair + "c", guided(pair), 0.0)
        queue.add(pair + "u", guided(pair, conditional=False), 0.0)
    started = []
    for request in queue.pop_ready(lambda pair: len(started) < 2, 0.0):
        started.append(request)  # noqa: PERF402 (`fits` looks at it)
    assert started == ["ac", "au"]
    assert len(queue) == 2


def test_queue_removed_request_does_not_leave(queue):
    queue.add("c", guided("a"), 0.0)
    for name in ("bc", "bu"):
        queue.add(name, guided("b", conditional=name == "bc"), 0.0)
    queue.add("text", None, 0.0)
    assert queue.remove(lambda request: request in ("c", "bu")) == ["c", "bu"]
    assert ready(queue) == ["bc", "text"]
    assert queue.remove(lambda request: True) == []


def test_capacity_fits_up_to_its_limits():
    capacity = Capacity(requests=2, tokens=10, blocks=4)
    assert capacity.fits([capacity])
    one, other = (Capacity(requests=1, tokens=tokens, blocks=2) for tokens in (4, 6))
    assert capacity.fits([one, other])
    for more in ({"requests": 3}, {"tokens": 11}, {"blocks": 5}):
        assert not capacity.fits([Capacity(**{"requests": 0, "tokens": 0, "blocks": 0} | more)])
