"""Encoding of records and images into shards of codes, once, before training.

`encode` runs on this machine or a Ray cluster; `encode_task` writes the shards of one of several
tasks, which any launcher can start. Records that cannot be encoded are written to `rejected.jsonl`
with the reason; a run with too many of them stops.
"""

from liquidmm.encode.config import (
    BucketConfig,
    EncodeConfig,
    EncoderConfig,
    RayConfig,
    SlurmConfig,
    WorkerConfig,
)
from liquidmm.encode.images import ImageTransform
from liquidmm.encode.run import encode, encode_task
from liquidmm.encode.worker import TokenizerFile, WorkerKilledError

__all__ = [
    "BucketConfig",
    "EncodeConfig",
    "EncoderConfig",
    "ImageTransform",
    "RayConfig",
    "SlurmConfig",
    "TokenizerFile",
    "WorkerConfig",
    "WorkerKilledError",
    "encode",
    "encode_task",
]
