import pytest
import torch

from liquidmm.encode import EngineConfig, engine
from liquidmm.encode.engine import decoders_of, tasks_of, workers_of

CPU, GPU, SECOND = torch.device("cpu"), torch.device("cuda"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("config", "device", "workers", "tasks", "decoders"),
    [
        ({}, CPU, 16, 40, 1),
        ({"threads": 4}, CPU, 4, 40, 1),
        ({"workers": 3, "decoders": 2}, CPU, 3, 40, 2),
        ({"workers": 99}, CPU, 40, 40, 1),
        ({"tasks": 5}, CPU, 16, 5, 1),
        ({}, GPU, 4, 40, 4),
        ({"workers": 8}, GPU, 8, 40, 2),
        ({}, SECOND, 1, 40, 16),
        ({"kind": "ray", "workers": 8}, CPU, 8, 32, 1),
        ({"kind": "slurm", "workers": 64, "gpus": 1}, CPU, 64, 40, 8),
        ({"kind": "slurm", "workers": 4, "tasks": 12}, CPU, 4, 12, 1),
    ],
)
def test_how_many(monkeypatch, config, device, workers, tasks, decoders):
    """On a machine of 16 cores and 4 GPUs, with 40 shards to write."""
    monkeypatch.setattr(engine, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    given = EngineConfig(**config)
    assert workers_of(given, device, 40) == workers
    assert tasks_of(given, workers, 40) == tasks
    assert decoders_of(given, device, workers) == decoders
