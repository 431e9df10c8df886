"""How much memory a measurement takes at most, and how much there is.

Contract: a peak is that of this process alone and is counted from a mark; where the system doesn't
tell it, it is None, never a guess. On a GPU it is what PyTorch allocated there; on a CPU it is the
resident set, which Linux can be asked to forget the peak of.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TOTALS = Path("/proc/meminfo")


class PeakMemory:
    """The most bytes this process has held since a mark, beyond what it held then."""

    def __init__(self, device: torch.device) -> None:
        """Begin before the first mark, where everything the process holds counts."""
        self._device = device
        self._base: int | None = 0

    def mark(self) -> None:
        """Count from what is held now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
            return
        try:
            _CLEAR.write_text("5", encoding="ascii")  # Linux: forget the peak
        except OSError:
            self._base = None
            return
        self._base = resident()

    def peak(self) -> int | None:
        """Give the bytes, or None where they are not known."""
        if self._device.type == "cuda":
            held: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            held = _entry(_STATUS, "VmHWM")
        return None if held is None or self._base is None else max(0, held - self._base)


def resident() -> int | None:
    """Give the bytes this process holds in memory now, or None where they are not known."""
    return _entry(_STATUS, "VmRSS")


def available(device: torch.device) -> int | None:
    """Give the bytes that could be taken now, or None where they are not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _entry(_TOTALS, "MemAvailable")


def _entry(path: Path, name: str) -> int | None:
    """Read one of the kernel's entries; they are in KiB."""
    if not path.is_file():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
