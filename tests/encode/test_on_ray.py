"""Workers on a Ray cluster of this machine."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from liquidmm.encode import RayConfig, encode
from liquidmm.errors import ConfigError

ray = pytest.importorskip("ray", reason="needs the extra cluster")


@dataclass(frozen=True)
class Slow:
    """A slow image tokenizer that records the processes that load it."""

    folder: Path
    seconds: float

    codebook_size = 256
    downsample_factor = 96
    fingerprint = "slow"
    device = torch.device("cpu")

    def __call__(self):
        (self.folder / str(os.getpid())).touch()
        return self

    def encode(self, pixels):
        time.sleep(self.seconds)
        return pixels.float().mean((1, 2, 3)).round().long()[:, None, None]


@pytest.mark.slow
def test_killed_worker_loses_no_shards(whole, tmp_path, monkeypatch):
    # Ray runs workers with a low priority
    monkeypatch.setenv("RAY_worker_niceness", "0")
    out, workers = tmp_path / "out", tmp_path / "workers"
    workers.mkdir()
    killed = []

    def kill():
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            time.sleep(0.01)
            if len(list(out.glob("shard-*.arrow"))) >= 3:
                killed.extend({int(p.name) for p in workers.iterdir()} - {os.getpid()})
        os.kill(killed[0], signal.SIGKILL)

    ray.cloudpickle.register_pickle_by_value(sys.modules[Slow.__module__])
    slow = replace(whole, tokenizer=Slow(workers, 0.1), folder=tmp_path / "whole")
    killer = threading.Thread(target=kill)
    killer.start()
    encode(*slow.arguments(out, num=2), RayConfig(address="local", memory=1))
    killer.join()
    assert not ray.is_initialized()
    assert len(list(workers.iterdir())) >= 3  # this process, two workers, perhaps one more
    encode(*replace(slow, tokenizer=Slow(workers, 0.0)).arguments(slow.folder))
    slow.assert_same(out)


def test_no_ray_cluster_is_reported(whole, tmp_path, monkeypatch):
    def refuse(**options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"ray\.address: .*'auto'"):
        encode(*whole.arguments(tmp_path / "out", num=1), RayConfig())
