"""`decode.c`, compiled when the package is installed: its structures and functions, for Python.

Contract: the structures mirror those of `decode.c`, field by field; a library that was compiled
from another version of that file is refused. Whoever fills a structure keeps the tensors alive that
it points into.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from platform import machine
from zlib import crc32

import torch
from torch import Tensor

from liquidmm.runtime import get_logger

SOURCES = [Path(__file__).with_name(name) for name in ("decode.c", "panels.h", "meet.h")]
"""What it is compiled from."""
_NAME = "_decode"
_X86 = ("x86_64", "amd64")

PANEL = 32
"""Outputs that lie side by side."""
LANES = 8
"""Numbers of a vector; heads must be a multiple of it."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Types of weights."""
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}
"""Kinds of activations."""

_Fields = tuple[tuple[str, type], ...]


def _pointers(*names: str) -> _Fields:
    return tuple((name, c_void_p) for name in names)


def _numbers(*names: str) -> _Fields:
    return tuple((name, c_int64) for name in names)


class Matrix(Structure):
    """A weight in panels."""

    _fields_ = (
        *_pointers("weight", "scale", "bias"),
        *_numbers("outputs", "inputs", "kind"),
    )


class Layer(Structure):
    """One block."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *_pointers("attention_norm", "mlp_norm", "query_norm", "key_norm", "cache"),
    )


class Model(Structure):
    """All blocks."""

    _fields_ = (
        *_numbers("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate"),
        *_numbers("activation"),
        ("eps", c_float),
        ("scaling", c_float),
        *_pointers("cosines", "sines", "norm", "layer"),
    )


class Pass(Structure):
    """What one pass reads and writes."""

    _fields_ = (
        *_numbers("rows", "steps", "first", "length", "threads"),
        *_pointers("starts", "hidden", "normed", "qkv", "attended", "inner", "scores"),
    )


@cache
def find_library() -> ctypes.CDLL | str:
    """Load the library; where that is impossible, say once that PyTorch will be slower.

    Returns:
        The library, or why there is none.
    """
    library = _load()
    if isinstance(library, str):
        get_logger(__name__).warning(
            "liquidmm's own decoder can't be used: %s. PyTorch's is several times slower.", library
        )
    return library


def _load() -> ctypes.CDLL | str:
    places = [Path(__file__).with_name(_NAME + suffix) for suffix in EXTENSION_SUFFIXES]
    files = [path for path in places if path.is_file()]
    if not files:
        return "it was not compiled when liquidmm was installed; that needs a C compiler"
    vectors = torch.backends.cpu.get_cpu_capability()
    if machine().lower() in _X86 and not vectors.startswith("AVX"):
        return "this CPU has no AVX2"
    library = ctypes.CDLL(str(files[0]))
    library.liquid_source.restype = c_int64
    if library.liquid_source() != crc32(b"".join(source.read_bytes() for source in SOURCES)):
        return "it was compiled from another version; install liquidmm again"
    library.liquid_forward.argtypes = [POINTER(Model), POINTER(Pass)]
    library.liquid_multiply.argtypes = [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int64]
    for function in (library.liquid_forward, library.liquid_multiply):
        function.restype = None
    return library


def address(tensor: Tensor) -> int:
    """Return where a tensor lies, which must be in one piece."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()
