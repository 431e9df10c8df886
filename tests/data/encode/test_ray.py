"""The same tasks on a Ray cluster of this machine."""

import os
import signal
import threading
import time

import psutil
import pytest

from liquidmm.data.encode import encode
from liquidmm.errors import ConfigError

ray = pytest.importorskip("ray", reason="needs the extra ray")


def test_a_killed_worker_loses_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    out = tmp_path / "out"
    killed = []

    def kill():
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            time.sleep(0.002)
            if len(list(out.glob("shard-*.arrow"))) >= 2:
                killed.extend(
                    process.pid
                    for process in psutil.Process().children(recursive=True)
                    if "ray::_task" in " ".join(process.cmdline())
                )
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    encode(*whole.arguments(out, kind="ray", workers=2, tasks=2, address="local", memory=1))
    killer.join()
    assert len(killed) in (1, 2)
    assert not ray.is_initialized()
    whole.assert_same(out)


def test_no_cluster(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"engine\.address: no Ray cluster at '127\.0\.0\.1:1'"):
        encode(*whole.arguments(tmp_path / "out", kind="ray", workers=1, address="127.0.0.1:1"))
