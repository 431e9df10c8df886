"""The runtime environment: devices, dtypes, random generators, CPU settings, extras, logging.

No other module detects hardware. Functions import torch themselves, so importing this module is
cheap.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from liquidmm.errors import ConfigError, MissingExtraError, suggest

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")

# names and values from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def resolve_device(name: str | None) -> torch.device:
    """Return the device with a name such as "cpu", "cuda", "cuda:1" or "mps".

    None is the first available of cuda, mps and cpu.

    Raises:
        ConfigError: The name is unknown, or this build of torch does not support the device.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        return torch.device(next(kind for kind, exists in available.items() if exists))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in available:
        raise ConfigError(f"device: unknown device '{name}'.{suggest(name, available)}")
    exists = available[device.type]
    if device.type == "cuda" and exists:
        exists = device.index is None or device.index < torch.cuda.device_count()
    if not exists:
        found = ", ".join(kind for kind, exists in available.items() if exists)
        raise ConfigError(f"device: '{name}' is not available on this machine. Use {found}.")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype with a name from `DTYPES`.

    "auto" is bfloat16 if the device supports it in hardware, otherwise float32 (on a CPU bfloat16
    is often many times slower).

    Raises:
        ConfigError: The name is unknown.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype: unknown dtype '{name}'.{suggest(name, DTYPES)}")
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = device.type == "mps" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.bfloat16 if fast else torch.float32


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a seeded random generator that is independent of torch's global state.

    Raises:
        ConfigError: The seed is negative, or 2**63 or more.
    """
    import torch

    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed: expected a number from 0 to 2**63 - 1, got {seed}.")
    return torch.Generator(device).manual_seed(seed)


def tune_cpu_allocator() -> bool:
    """Make long CPU runs faster; call it before the first tensor is created.

    Makes glibc keep freed memory and flushes denormal numbers to zero. A training step allocates
    and frees gigabytes in large blocks; by default, glibc returns them to the system, which zeroes
    each page again. Keeping them made a step of a 12M-parameter model 1.3 to 1.6 times faster on
    two cores. Denormals, which occur in Adam's averages for rows without gradients, are a hundred
    times slower than other numbers.

    Returns:
        Whether the allocator was changed; False without glibc.
    """
    import torch

    torch.set_flush_denormal(True)
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    values = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in values)


def cpu_count() -> int:
    """Return the number of CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional module that the extra ``liquidmm[extra]`` installs.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtraError(
            f'{module}: not installed. Install it with: pip install "liquidmm[{extra}]"'
        ) from error


def get_logger(name: str) -> logging.Logger:
    """Return a logger that writes messages of level INFO and above to stderr.

    If the application has configured logging itself, only its handlers are used.
    """
    package = logging.getLogger("liquidmm")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(lambda _: not logging.getLogger().handlers)
        package.addHandler(handler)
        package.setLevel(logging.INFO)
    return logging.getLogger(name)
