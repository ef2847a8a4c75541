# SPDX-License-Identifier: GPL-3.0-or-later
"""The back ends that one test of a kernel runs on; conftest.py makes the fixture ``backend`` of them.

reference (float64 NumPy), cpu (Numba), cuda-host (the CUDA sources through the host shim, launched by the same Python
as on a GPU), cuda (CuPy, where there is a GPU).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_host import fake_cupy, host

from sparsecv.kernels import cuda, cuda_launch, reference


class Backend:
    """The operations of one back end, and the way to and from its memory."""

    def __init__(self, ops: types.ModuleType) -> None:
        self.ops = ops

    def up(self, array: Any) -> Any:
        """To the back end's memory; other things than arrays stay as they are."""
        return self.ops.xp.asarray(array) if isinstance(array, np.ndarray) else array

    def down(self, result: Any) -> Any:
        """To NumPy, in double precision; Python numbers stay as they are."""
        if isinstance(result, (int, float)):
            return result
        host_array = self.ops.to_host(result)
        return host_array.astype(np.complex128 if host_array.dtype.kind == "c" else np.float64)

    def call(self, name: str, *arguments: Any) -> Any:
        """One operation from NumPy to NumPy; arrays changed in place are changed in the caller's, too."""
        lifted = [self.up(argument) for argument in arguments]
        result = getattr(self.ops, name)(*lifted)
        for given, used in zip(arguments, lifted, strict=True):
            if isinstance(given, np.ndarray) and given is not used:
                given[...] = self.ops.to_host(used)
        if result is None:
            return None
        return tuple(map(self.down, result)) if isinstance(result, tuple) else self.down(result)


def has_gpu() -> bool:
    """Whether CuPy is installed and finds a device."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


@contextlib.contextmanager
def opened(name: str) -> Iterator[Backend]:
    """The back end of that name; the test is skipped where it cannot run."""
    if name == "reference":
        yield Backend(reference)
    elif name == "cpu":
        yield Backend(pytest.importorskip("sparsecv.kernels.cpu", exc_type=ImportError))
    elif name == "cuda-host":
        if host.compiler() is None:
            pytest.skip("g++ is not installed")
        cuda_launch.compiled.cache_clear()
        with fake_cupy.installed():
            yield Backend(cuda)
        cuda_launch.compiled.cache_clear()
    else:
        if not has_gpu():
            pytest.skip("no GPU")
        yield Backend(cuda)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Length of the difference over the length of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
