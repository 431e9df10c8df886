"""Python bindings for the functions and structures of `llama.c`.

The library is compiled when the package is installed. A library that was compiled from other
sources, or whose structures or constants differ from those below, is rejected. Code that fills a
structure must keep the tensors it points to in memory.
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

SOURCES = tuple(Path(__file__).with_name(name) for name in ("llama.c", "matmul.h", "threads.h"))
_NAME = "_llama"
IS_X86 = machine().lower() in ("x86_64", "amd64")

PANEL = 32
"""Outputs per panel of a weight matrix."""
LANES = 8
"""Values per SIMD vector; the head dimension must be a multiple of this."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Constants for the weight dtypes."""
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}
"""Constants for the activation functions."""

_Fields = tuple[tuple[str, type], ...]


def _pointers(*names: str) -> _Fields:
    return tuple((name, c_void_p) for name in names)


def _integers(*names: str) -> _Fields:
    return tuple((name, c_int64) for name in names)


class Matrix(Structure):
    """A weight in panels."""

    _fields_ = (
        *_pointers("weight", "scale", "bias"),
        *_integers("outputs", "inputs", "dtype"),
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
        *_integers("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate"),
        *_integers("activation"),
        ("eps", c_float),
        ("scaling", c_float),
        *_pointers("cosines", "sines", "norm", "layer"),
    )


class ForwardArgs(Structure):
    """Inputs and outputs of a forward pass."""

    _fields_ = (
        *_integers("slots", "steps", "first_slot", "length", "threads"),
        *_pointers("starts", "hidden", "normed", "qkv", "attended", "inner", "scores"),
    )


ABI = (
    *(ctypes.sizeof(structure) for structure in (Matrix, Layer, Model, ForwardArgs)),
    PANEL,
    LANES,
    *DTYPES.values(),
    *ACTIVATIONS.values(),
)
"""The value that `liquid_abi` must return."""


@cache
def find_library() -> ctypes.CDLL | str:
    """Return the library, or the reason it cannot be used, which is logged once."""
    library = load_library(Path(__file__).parent)
    if isinstance(library, str):
        get_logger(__name__).warning(
            "The C backend is not available: %s. PyTorch is several times slower.", library
        )
    return library


def load_library(
    folder: Path, sources: tuple[Path, ...] = SOURCES, abi: tuple[int, ...] = ABI
) -> ctypes.CDLL | str:
    """Load the library from a folder.

    Args:
        folder: Folder with the compiled library.
        sources: The files that it must have been compiled from.
        abi: The value that its `liquid_abi` must return.

    Returns:
        The library, or the reason it cannot be used.
    """
    places = [folder / (_NAME + suffix) for suffix in EXTENSION_SUFFIXES]
    files = [path for path in places if path.is_file()]
    if not files:
        return "it was not compiled when liquidmm was installed, which needs a C compiler"
    vectors = torch.backends.cpu.get_cpu_capability()
    if IS_X86 and not vectors.startswith("AVX"):
        return "this CPU has no AVX2"
    library = ctypes.CDLL(str(files[0]))
    library.liquid_source.restype = c_int64
    if library.liquid_source() != crc32(b"".join(source.read_bytes() for source in sources)):
        return "it was compiled from another version; install liquidmm again"
    library.liquid_abi.restype = POINTER(c_int64)
    if tuple(library.liquid_abi()[: len(abi)]) != abi:
        return "its structures or constants differ from those in ffi.py"
    declare(library)
    return library


def declare(library: ctypes.CDLL) -> None:
    """Declare the arguments of the library's functions."""
    library.liquid_forward.argtypes = [POINTER(Model), POINTER(ForwardArgs)]
    library.liquid_matmul.argtypes = [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int64]
    for function in (library.liquid_forward, library.liquid_matmul):
        function.restype = None


def address(tensor: Tensor) -> int:
    """Return the address of a contiguous tensor."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()
