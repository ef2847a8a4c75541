# SPDX-License-Identifier: GPL-3.0-or-later
"""From the CUDA sources in ``cuda/`` to running kernels; used by the modules of the GPU back end only.

The sources are compiled by NVRTC at the first use on a device (CuPy keeps the result on disk), so that neither nvcc nor
a compiler is needed. CuPy is imported at the first use, not with this module.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

SOURCES = Path(__file__).with_name("cuda")
THREADS = 128  # per block


def import_cupy() -> Any:
    """The module cupy; RuntimeError, which says what to install, where it cannot be imported."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            "CuPy, which the GPU needs, cannot be imported: install cupy-cuda12x or cupy-cuda13x, or choose the CPU"
        ) from error
    return cupy


def source(family: str) -> str:
    """Text of ``cuda/<family>.cu`` with the common part put in place, and line marks for messages and debuggers."""
    include = '#include "common.cuh"\n'
    common, text = ((SOURCES / file).read_text() for file in ("common.cuh", f"{family}.cu"))
    before, after = text.split(include)
    next_line = before.count("\n") + 2
    return f'#line 1 "{family}.cu"\n{before}#line 1 "common.cuh"\n{common}\n#line {next_line} "{family}.cu"\n{after}'


def options(**macros: int) -> tuple[str, ...]:
    """Compiler options that every kernel is built with, and its macros."""
    return ("-std=c++17", *(f"-D{key}={value}" for key, value in {"THREADS": THREADS, **macros}.items()))


@functools.cache
def compiled(device: int, family: str, flags: tuple[str, ...]) -> Any:
    """The kernels of a source for a device, kept for the life of the process."""
    return import_cupy().RawModule(code=source(family), options=flags, backend="nvrtc")


def launch(family: str, kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...], **macros: int) -> None:
    """Run a kernel with THREADS threads per block; integers go as int32, real numbers as float32."""
    if 0 in grid:
        return
    scalars = {int: np.int32, float: np.float32}
    typed = tuple(scalars.get(type(argument), lambda a: a)(argument) for argument in arguments)
    module = compiled(import_cupy().cuda.Device().id, family, options(**macros))
    module.get_function(kernel)(grid, (THREADS,), typed)


def blocks(items: int) -> int:
    """Blocks of THREADS threads that give every item a thread."""
    return -(-items // THREADS)


def contiguous(dtype: type, *arrays: Any) -> list[Any]:
    """Contiguous arrays of a type; nothing is copied where they already are."""
    return [import_cupy().ascontiguousarray(array, dtype=dtype) for array in arrays]
