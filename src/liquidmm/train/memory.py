"""Settings of the process that make long CPU runs faster without changing what they compute.

Contract: `prepare_cpu` is called once by a command or a trainer, before its first tensor; it never
fails and changes nothing where it doesn't apply.
"""

from __future__ import annotations

import ctypes
import sys

import torch

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROW = 256 * 2**20


def prepare_cpu() -> bool:
    """Let glibc keep freed memory, and flush denormal numbers to zero.

    A training step frees and takes gigabytes in large pieces. glibc returns each piece to the
    system, which hands it back cleared, page by page; keeping them made a step of a 12M-parameter
    model 1.3 to 1.6 times faster on two cores. Denormals, which Adam's averages reach where a row
    gets no gradient, cost a hundred times as much as other numbers.

    Returns:
        Whether the allocator took the settings (False where it isn't glibc's).
    """
    torch.set_flush_denormal(True)
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW))
    return all(mallopt(name, value) == 1 for name, value in wanted)
