"""How fast this machine reads memory: the limit of everything that reads each weight once.

Contract: measured with the threads that the other sides compute with, on a buffer that no cache of
a CPU holds, and by turns with them.
"""

from __future__ import annotations

import torch

from liquidmm.bench.worker import Pacer

BUFFER = 2**29
"""Bytes of the buffer on a CPU."""
GPU_BUFFER = 2**32
"""Bytes of the buffer on a GPU."""


def read_memory(pacer: Pacer, size: int) -> None:
    """Read a buffer whenever the pacer says go; counts bytes.

    Args:
        pacer: Says when.
        size: Bytes of the buffer.
    """
    # Filled, because pages that were never written are all the same one.
    buffer = torch.ones(size // 4, device=pacer.device)
    while pacer.go():
        buffer.sum()
        pacer.count(bytes=size)
