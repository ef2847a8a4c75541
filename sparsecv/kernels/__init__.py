# SPDX-License-Identifier: GPL-3.0-or-later
"""The hot loops, behind one namespace: the only place that knows a CPU from a GPU.

``reference`` defines every function in float64 NumPy; ``cpu`` (Numba) and ``cuda`` (CuPy over ``cuda/*.cu``) are the
fast ones. The engine asks for one of them once and calls its functions with arrays of its ``xp``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

DEVICES = ("auto", "cpu", "gpu", "reference")


def gpu_problem() -> str | None:
    """Why no GPU can be used, in words; None where one can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA finds no device ({error})"
    return None if count > 0 else "CUDA finds no device"


def ops(device: str = "auto", number: int = 0) -> ModuleType:
    """Back end for a device.

    Parameters
    ----------
    device
        ``"cpu"``, ``"gpu"``, ``"auto"`` (a GPU where there is one) or ``"reference"`` (float64 NumPy, for tests).
    number
        Of this process among those on the machine: each takes the next GPU, and shares one where there are fewer.

    Raises
    ------
    ValueError
        For another name.
    RuntimeError
        When a GPU is asked for and cannot be used; the message says why.
    """
    if device not in DEVICES:
        raise ValueError(f"device is one of {', '.join(DEVICES)}, not {device!r}")
    if device == "reference":
        return importlib.import_module("sparsecv.kernels.reference")
    problem = gpu_problem() if device != "cpu" else None
    if device == "gpu" and problem:
        raise RuntimeError(f"no GPU can be used: {problem}")
    use_gpu = device == "gpu" or (device == "auto" and problem is None)
    if use_gpu and number:
        cuda = importlib.import_module("cupy").cuda
        cuda.Device(number % cuda.runtime.getDeviceCount()).use()
    return importlib.import_module("sparsecv.kernels." + ("cuda" if use_gpu else "cpu"))
