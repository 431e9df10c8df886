"""Compiles the "cpu" backend. It is optional: without a C compiler PyTorch is used."""

from pathlib import Path
from platform import machine, system
from zlib import crc32

from setuptools import Extension, setup

folder = Path("src/liquidmm/generate/backends/cpu")
sources = [folder / name for name in ("llama.c", "matmul.h", "threads.h")]
checksum = crc32(b"".join(source.read_bytes() for source in sources))
flags = ["-O3", "-std=gnu11"]
if machine().lower() in ("x86_64", "amd64"):
    flags += ["-mavx2", "-mfma"]  # every x86 CPU since 2015; ffi.py rejects others
openmp = [] if system() == "Darwin" else ["-fopenmp"]

setup(
    ext_modules=[
        Extension(
            "liquidmm.generate.backends.cpu._llama",
            sources=[str(sources[0])],
            depends=[str(source) for source in sources[1:]],
            define_macros=[("LIQUID_SOURCE", str(checksum))],
            extra_compile_args=flags + openmp,
            extra_link_args=openmp,
            libraries=["m"],
            optional=True,
        )
    ]
)
