"""The machine: devices, number types, random generators, optional packages, safe writing, logging.

Contract: the only place that asks what hardware there is, and the only way files reach the disk:
whole or not at all. torch is imported inside the functions that need it, so that importing this
module is cheap.
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

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROW = 256 * 2**20


def resolve_device(name: str | None) -> torch.device:
    """Choose the device to compute on.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps"; None takes cuda, else mps, else cpu.

    Returns:
        The device.

    Raises:
        ConfigError: The name is no device, or this machine or this build of torch doesn't have it.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in available:
        raise ConfigError(f"device: '{name}' is no device.{suggest(name, available)}")
    there = available[device.type]
    if device.type == "cuda" and there:
        there = device.index is None or device.index < torch.cuda.device_count()
    if not there:
        found = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"device: '{name}' is not available here. Choose one of: {found}.")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose the number type to compute in.

    Args:
        name: "auto", "float32", "bfloat16" or "float16"; "auto" is bfloat16 where the device has it
            in hardware and float32 elsewhere (on a CPU bfloat16 is often many times slower).
        device: Where the computation runs.

    Returns:
        The type.

    Raises:
        ConfigError: The name is none of the four.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype: '{name}' is unknown.{suggest(name, DTYPES)}")
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    fast = device.type == "mps" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.bfloat16 if fast else torch.float32


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a random generator of its own, independent of torch's global state.

    Args:
        seed: 0 or more, below 2**63.
        device: Where the numbers are drawn.

    Returns:
        The seeded generator.

    Raises:
        ConfigError: The seed is out of range.
    """
    import torch

    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed: must be from 0 to 2**63 - 1 ({seed}). Give another seed.")
    return torch.Generator(device).manual_seed(seed)


def tune_cpu_allocator() -> bool:
    """Make long CPU runs faster without changing what they compute; before the first tensor.

    glibc keeps freed memory, and denormal numbers are flushed to zero. A training step frees and
    takes gigabytes in large pieces. glibc returns each piece to the system, which hands it back
    cleared, page by page; keeping them made a step of a 12M-parameter model 1.3 to 1.6 times faster
    on two cores. Denormals, which Adam's averages reach where a row gets no gradient, cost a
    hundred times as much as other numbers.

    Returns:
        Whether the allocator took the settings (False where it isn't glibc's).
    """
    import torch

    torch.set_flush_denormal(True)
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW))
    return all(mallopt(name, value) == 1 for name, value in wanted)


def cpu_count() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: Dotted name to import.
        extra: The extra of this distribution that installs it.

    Returns:
        The module.

    Raises:
        MissingExtraError: The package isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtraError(
            f'{module}: is not installed. Install it with: pip install "liquidmm[{extra}]"'
        ) from error


def get_logger(name: str) -> logging.Logger:
    """Give a logger that writes plain lines to stderr, from level INFO up.

    Args:
        name: ``__name__`` of the caller.

    Returns:
        The logger; an application that set up logging itself keeps its own handlers and gets no
        second copy.
    """
    package = logging.getLogger("liquidmm")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(lambda _: not logging.getLogger().handlers)
        package.addHandler(handler)
        package.setLevel(logging.INFO)
    return logging.getLogger(name)
