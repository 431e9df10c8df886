"""The scheduler before a stand-in for vLLM's; vLLM's own is in benchmarks/engines.sh."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from liquidmm.export.pair_queue import PATIENCE
from liquidmm.export.pairs import GUIDANCE, PAIR, ROLE

IDS, ROWS, BLOCKS = 20, 4, 13  # one of the blocks is never used


class Scheduler:
    """Starts all that was added in the next step."""

    def __init__(self, vllm_config):
        self.vllm_config = vllm_config
        self.requests, self.waiting, self.running = {}, [], []
        self.max_num_active_reqs, self.max_num_scheduled_tokens = ROWS, IDS
        self.cache_config = SimpleNamespace(num_gpu_blocks=BLOCKS)
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[0])
        self.block_size = 8

    def add_request(self, request):
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def schedule(self, throttle=False):
        started, self.waiting = self.waiting, []
        for request in started:
            request.num_computed_tokens = request.num_tokens
        self.running += started
        return [request.request_id for request in started], throttle

    def finish_requests(self, ids, status):
        ended = [name for name in self.requests if ids is None or name in ids]
        self.waiting = [request for request in self.waiting if request.request_id not in ended]
        self.running = [request for request in self.running if request.request_id not in ended]
        for name in ended:
            del self.requests[name]
        return ended, status

    def get_request_counts(self):
        return len(self.running), len(self.waiting)


class AsyncScheduler(Scheduler):
    """vLLM's other one."""


@pytest.fixture
def module(monkeypatch):
    modules = {
        "vllm": {},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.core.sched": {},
        "vllm.v1.core.sched.scheduler": {"Scheduler": Scheduler},
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": AsyncScheduler},
    }
    for name, attributes in modules.items():
        stub = ModuleType(name)
        vars(stub).update(attributes)
        monkeypatch.setitem(sys.modules, name, stub)
    name = "liquidmm.export.vllm_scheduler"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture
def clock(module, monkeypatch):
    """Seconds, to be changed."""
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.value)
    return now


@pytest.fixture
def scheduler(module, clock):
    return module.PairScheduler(vllm_config=config())


def config(*, runs_ahead=False):
    return SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=runs_ahead))


@pytest.fixture
def request_of(settings):
    """Make a request of 5 ids that may add 10: two of our blocks; "a1" and "a2" are a pair."""

    def make(name, ids=5, max_tokens=10, guidance=3.0):
        role = {"1": "conditional", "2": "unconditional"}.get(name[1:])
        params = settings(**{PAIR: name[0], ROLE: role or "conditional", GUIDANCE: guidance})
        if role is None:
            params.extra_args = None
        return SimpleNamespace(
            request_id=name,
            sampling_params=params,
            num_prompt_tokens=ids,
            num_tokens=ids,
            num_computed_tokens=0,
            max_tokens=max_tokens,
        )

    return make


def add(scheduler, *requests):
    for request in requests:
        scheduler.add_request(request)


def test_halves_start_in_one_step(scheduler, request_of):
    add(scheduler, request_of("a1"))
    assert scheduler.schedule() == ([], False)
    assert scheduler.get_request_counts() == (0, 1)
    add(scheduler, request_of("text"), request_of("a2"))
    assert scheduler.schedule(True) == (["text", "a1", "a2"], True)
    assert scheduler.get_request_counts() == (3, 0)


def test_a_guidance_of_one_starts_at_once(scheduler, request_of):
    add(scheduler, request_of("a1", guidance=1.0))
    assert scheduler.schedule()[0] == ["a1"]


def test_a_lone_half_is_let_go_in_the_end(scheduler, request_of, clock):
    add(scheduler, request_of("a1"))
    clock.value = PATIENCE
    assert scheduler.schedule()[0] == ["a1"]


@pytest.mark.parametrize(
    "before",
    [
        {"name": "text", "ids": 11},  # 11 + 5 + 5 ids are more than a step takes
        {"name": "b1", "max_tokens": 70},  # 10 blocks to its end, and 4 for the pair
    ],
)
def test_a_pair_waits_for_room(scheduler, request_of, before):
    add(scheduler, request_of(**{"guidance": 1.0} | before), request_of("a1"), request_of("a2"))
    assert scheduler.schedule()[0] == [before["name"]]
    if before["name"] == "text":  # its ids are computed now, and its blocks are counted as they are
        assert scheduler.schedule()[0] == ["a1", "a2"]
    else:
        assert scheduler.schedule()[0] == []
        scheduler.finish_requests("b1", "stopped")
        assert scheduler.schedule()[0] == ["a1", "a2"]


def test_a_pair_waits_for_rows(scheduler, request_of):
    add(scheduler, *(request_of(f"t{name}", ids=1) for name in "xyz"))
    assert len(scheduler.schedule()[0]) == 3
    add(scheduler, request_of("a1"), request_of("a2"), request_of("text"))
    assert scheduler.schedule()[0] == []
    scheduler.finish_requests(["tx"], "stopped")
    assert scheduler.schedule()[0] == ["a1", "a2", "text"]


def test_a_pair_that_will_never_have_room_starts_alone(scheduler, request_of):
    add(scheduler, request_of("a1", ids=30), request_of("a2"))
    assert scheduler.schedule()[0] == ["a1", "a2"]


def test_what_is_held_back_can_be_ended(scheduler, request_of):
    add(scheduler, request_of("a1"))
    assert scheduler.finish_requests("a1", "aborted") == (["a1"], "aborted")
    assert scheduler.get_request_counts() == (0, 0)
    add(scheduler, request_of("b1"), request_of("c1"), request_of("c2"))
    assert scheduler.finish_requests(None, "aborted")[0] == ["b1", "c1", "c2"]
    assert scheduler.schedule()[0] == []


def test_more_input_of_a_known_request_passes(scheduler, request_of):
    add(scheduler, request_of("text"))
    scheduler.schedule()
    add(scheduler, request_of("text"))
    assert [request.request_id for request in scheduler.waiting] == ["text"]


def test_an_engine_that_runs_ahead_gets_its_own_kind(module):
    plain = module.PairScheduler(vllm_config=config())
    ahead = module.PairScheduler(vllm_config=config(runs_ahead=True))
    assert not isinstance(plain, AsyncScheduler)
    assert isinstance(ahead, AsyncScheduler)
    assert len(ahead._held) == 0
