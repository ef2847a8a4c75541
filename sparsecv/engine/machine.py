# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program runs on, in a few words each: software, processor, memory, device. Nothing here ever raises.

Nothing slow is started either: a GPU is only spoken to where CuPy is in use already.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsecv import __version__
from sparsecv.engine.threads import available_cores
from sparsecv.kernels.host_memory import free_memory

PACKAGES = ("numpy", "scipy", "numba", "gemmi", "mrcfile", "healpix", "finufft", "matplotlib", "threadpoolctl")
SHOWN_AS = {"numpy": "NumPy", "scipy": "SciPy", "numba": "Numba", "finufft": "FINUFFT", "matplotlib": "Matplotlib"}
CUPY_WHEELS = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy")
UNKNOWN = "unknown"


def describe(ops: Any = None, threads: int | None = None) -> dict[str, str]:
    """Software and machine by what they are called, for the record of a run.

    Parameters
    ----------
    ops
        Kernels in use; None: whichever CuPy is loaded tells of the device.
    threads
        In use; None: not told.
    """
    cores = _or_unknown(lambda: f"{available_cores()} of {os.cpu_count()} cores")
    return software() | {
        "system": _or_unknown(platform.platform),
        "processor": processor(),
        "threads": cores if threads is None else f"{threads}, {cores} may be used",
        "memory": memory(),
        "device": device(ops),
    }


def software() -> dict[str, str]:
    """Versions of the program, Python and packages."""
    found = {"sparsecv": __version__, "Python": platform.python_version()}
    found |= {SHOWN_AS.get(name, name): version(name) or "not installed" for name in PACKAGES}
    wheels = cupy_wheels()
    return found | ({"CuPy": ", ".join(f"{number} ({name})" for name, number in wheels.items())} if wheels else {})


def version(name: str) -> str | None:
    """Version of an installed distribution; None where it is not installed, or what tells so is damaged."""
    try:
        return metadata.version(name)
    except Exception:  # metadata of other programs' packages may be anything
        return None


def cupy_wheels() -> dict[str, str]:
    """The distributions of CuPy that are installed, with their versions; there should be one at most."""
    found = {name: version(name) for name in CUPY_WHEELS}
    return {name: number for name, number in found.items() if number is not None}


def processor() -> str:
    """Its name."""
    return first_value("/proc/cpuinfo", "model name") or platform.machine() or UNKNOWN


def memory() -> str:
    """Of the machine, or what the system's limits leave of it."""

    def of_host() -> str:
        free, total = free_memory()
        return f"{gigabytes(total)}, {gigabytes(free)} free" if total else UNKNOWN

    return _or_unknown(of_host)


def device(ops: Any = None) -> str:
    """What computes: the GPU in use, with its memory and compute capability, or the processor."""
    name = getattr(ops, "name", None)
    cupy = sys.modules.get("cupy")
    if cupy is None or name not in (None, "cuda"):
        return "processor"

    def of_gpu() -> str:
        runtime = cupy.cuda.runtime
        count = int(runtime.getDeviceCount())
        if not count:
            return "processor"
        number = int(runtime.getDevice())
        found = runtime.getDeviceProperties(number)
        return (f"{text(found['name'])}, {gigabytes(found['totalGlobalMem'])}, compute capability "
                f"{found['major']}.{found['minor']}" + (f", number {number} of {count}" if count > 1 else ""))

    return _or_unknown(of_gpu)


def first_value(path: str, key: str) -> str | None:
    """Value of the first line ``key : value`` of a file in /proc."""
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return None


def gigabytes(size: float) -> str:
    """Bytes as GB."""
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


def text(name: Any) -> str:
    """A name as CUDA gives it, which is bytes."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _or_unknown(tell: Callable[[], str]) -> str:
    """What is told; drivers and systems fail in ways of their own, and none of them may end a run."""
    try:
        return tell()
    except Exception:
        return UNKNOWN
