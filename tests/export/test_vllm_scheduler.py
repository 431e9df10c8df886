"""The scheduler on a stand-in for vLLM's; benchmarks/engines.sh runs it with vLLM itself."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from liquidmm.export.vllm_pair_queue import PAIR_TIMEOUT
from liquidmm.export.vllm_pairs import GUIDANCE, PAIR, ROLE

TOKENS, REQUESTS, BLOCKS = 20, 4, 13  # one of the blocks is never used


class Scheduler:
    """Starts all that was added in the next step."""

    def __init__(self, vllm_config):
        self.vllm_config = vllm_config
        self.requests, self.waiting, self.running = {}, [], []
        self.max_num_active_reqs, self.max_num_scheduled_tokens = REQUESTS, TOKENS
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


def config(*, is_async=False):
    return SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))


@pytest.fixture
def request_of(settings):
    """Make a request of 5 tokens that may add 10, two blocks; "a1" and "a2" are a pair."""

    def make(name, tokens=5, max_tokens=10, guidance=3.0):
        role = {"1": "conditional", "2": "unconditional"}.get(name[1:])
        params = settings(**{PAIR: name[0], ROLE: role or "conditional", GUIDANCE: guidance})
        if role is None:
            params.extra_args = None
        return SimpleNamespace(
            request_id=name,
            sampling_params=params,
            num_prompt_tokens=tokens,
            num_tokens=tokens,
            num_computed_tokens=0,
            max_tokens=max_tokens,
        )

    return make


def add(scheduler, *requests):
    for request in requests:
        scheduler.add_request(request)


def test_scheduler_pair_starts_in_one_step(scheduler, request_of):
    add(scheduler, request_of("a1"))
    assert scheduler.schedule() == ([], False)
    assert scheduler.get_request_counts() == (0, 1)
    add(scheduler, request_of("text"), request_of("a2"))
    assert scheduler.schedule(True) == (["text", "a1", "a2"], True)
    assert scheduler.get_request_counts() == (3, 0)


def test_scheduler_guidance_one_starts_at_once(scheduler, request_of):
    add(scheduler, request_of("a1", guidance=1.0))
    assert scheduler.schedule()[0] == ["a1"]


def test_scheduler_single_request_starts_after_timeout(scheduler, request_of, clock):
    add(scheduler, request_of("a1"))
    clock.value = PAIR_TIMEOUT
    assert scheduler.schedule()[0] == ["a1"]


@pytest.mark.parametrize(
    "before",
    [
        {"name": "text", "tokens": 11},  # 11 + 5 + 5 tokens do not fit into a step
        {"name": "b1", "max_tokens": 70},  # 10 blocks to its end, and 4 for the pair
    ],
)
def test_scheduler_pair_waits_for_capacity(scheduler, request_of, before):
    add(scheduler, request_of(**{"guidance": 1.0} | before), request_of("a1"), request_of("a2"))
    assert scheduler.schedule()[0] == [before["name"]]
    if before["name"] == "text":  # computed now, and counted with the blocks it has
        assert scheduler.schedule()[0] == ["a1", "a2"]
    else:
        assert scheduler.schedule()[0] == []
        scheduler.finish_requests("b1", "stopped")
        assert scheduler.schedule()[0] == ["a1", "a2"]


def test_scheduler_pair_waits_for_request_slots(scheduler, request_of):
    add(scheduler, *(request_of(f"t{name}", tokens=1) for name in "xyz"))
    assert len(scheduler.schedule()[0]) == 3
    add(scheduler, request_of("a1"), request_of("a2"), request_of("text"))
    assert scheduler.schedule()[0] == []
    scheduler.finish_requests(["tx"], "stopped")
    assert scheduler.schedule()[0] == ["a1", "a2", "text"]


def test_scheduler_oversized_pair_starts_alone(scheduler, request_of):
    add(scheduler, request_of("a1", tokens=30), request_of("a2"))
    assert scheduler.schedule()[0] == ["a1", "a2"]


def test_scheduler_queued_request_can_be_finished(scheduler, request_of):
    add(scheduler, request_of("a1"))
    assert scheduler.finish_requests("a1", "aborted") == (["a1"], "aborted")
    assert scheduler.get_request_counts() == (0, 0)
    add(scheduler, request_of("b1"), request_of("c1"), request_of("c2"))
    assert scheduler.finish_requests(None, "aborted")[0] == ["b1", "c1", "c2"]
    assert scheduler.schedule()[0] == []


def test_scheduler_streaming_input_not_queued(scheduler, request_of):
    add(scheduler, request_of("text"))
    scheduler.schedule()
    add(scheduler, request_of("text"))
    assert [request.request_id for request in scheduler.waiting] == ["text"]


def test_scheduler_async_engine_gets_async_scheduler(module):
    plain = module.PairScheduler(vllm_config=config())
    ahead = module.PairScheduler(vllm_config=config(is_async=True))
    assert not isinstance(plain, AsyncScheduler)
    assert isinstance(ahead, AsyncScheduler)
    assert ahead.get_request_counts() == (0, 0)
