# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv check``: what is installed, what it will compute on, and whether a small refinement comes out right."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sparsecv import __version__
from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.settings import check_range, option

PACKAGES = ("numpy", "scipy", "numba", "gemmi", "mrcfile", "healpix", "finufft", "matplotlib", "threadpoolctl")
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy")

PARTICLES, BOX, PIXEL_SIZE, SNR = 200, 32, 5.0, 0.5
EXPECTED = 12.0  # A at FSC = 0.5 against the truth: seeds 1 to 4 give 10.0 to 10.2 A, from a start at 40 A


@dataclass(frozen=True)
class CheckSettings:
    """What to check; checked itself when it is made."""

    device: str = option("auto", "where to compute", choices=("auto", "cpu", "gpu"))
    threads: int = option(0, "threads; 0 takes all cores")
    no_run: bool = option(False, "only show what is installed")
    seed: int = option(1, "of the simulated particles and the refinement", expert=True)

    def __post_init__(self) -> None:
        check_range("threads", self.threads, 0, 4096)
        check_range("seed", self.seed, 0, 2**32 - 1)


SETTINGS = CheckSettings


def run(settings: CheckSettings, save: Save) -> int:
    """Print what is there and the outcome of the run; 0 if all is well, else 1. Writes nothing that stays."""
    from sparsecv.engine.threads import use_threads

    for line in describe_software():
        print(line)
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        print(f"FAIL: {', '.join(missing)} not installed")
        return 1
    threads = use_threads(settings.threads)
    for line in describe_machine(threads):
        print(line)
    check_device(settings.device)
    if settings.no_run:
        return 0
    print(f"run: {PARTICLES} simulated particles of {BOX} pixels ...", flush=True)
    started = time.perf_counter()
    resolution = phantom_resolution(settings)
    seconds = time.perf_counter() - started
    is_right = resolution <= EXPECTED
    print(f"  {seconds:.0f} s, {resolution:.1f} A against the truth (at 0.5); {EXPECTED:g} A or better is expected")
    print("PASS" if is_right else "FAIL: the refinement did not come out right")
    return 0 if is_right else 1


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_software() -> Iterator[str]:
    """Lines on the program, Python and the packages."""
    yield f"sparsecv {__version__}, Python {platform.python_version()}, {platform.platform()}"
    found = [(name, _version(name)) for name in PACKAGES]
    found += [(name, version) for name in GPU_PACKAGES if (version := _version(name))]
    yield "packages: " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in found)


def describe_machine(threads: int) -> Iterator[str]:
    """Lines on processor, memory, linear algebra and device."""
    from sparsecv.engine.threads import available_cores

    model = _first_value("/proc/cpuinfo", "model name") or platform.machine()
    yield f"processor: {model}; {available_cores()} of {os.cpu_count()} cores available, threads in use: {threads}"
    total, free = (_gigabytes(name) for name in ("MemTotal", "MemAvailable"))
    yield f"memory: {total} GB, {free} GB free"
    yield from _describe_blas()
    yield f"device: {_device()}"


def _first_value(path: str, key: str) -> str | None:
    """Value of the first line ``key : value`` of a file in /proc."""
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return None


def _gigabytes(key: str) -> str:
    value = _first_value("/proc/meminfo", key)
    return "?" if value is None else f"{int(value.split()[0]) / 1e6:.1f}"


def _describe_blas() -> Iterator[str]:
    import numpy as np
    import threadpoolctl

    np.ones((2, 2)) @ np.ones((2, 2))
    has_avx512 = "avx512f" in (_first_value("/proc/cpuinfo", "flags") or "").split()
    seen = set()
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] != "blas":
            continue
        core = library.get("architecture", "?")
        line = f"linear algebra: {library['internal_api']} {library['version']}, kernels for {core}"
        if has_avx512 and core == "Haswell":
            # wheels do not know the newest processors and fall back to kernels without AVX-512
            line += " though the processor has AVX-512: OPENBLAS_CORETYPE=SkylakeX in the environment may be faster"
        if line not in seen:
            seen.add(line)
            yield line


def _device() -> str:
    from sparsecv.kernels import gpu_problem

    problem = gpu_problem()
    if problem is not None:
        return f"processor; no GPU: {problem}"
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    count = cupy.cuda.runtime.getDeviceCount()
    return f"GPU: {properties['name'].decode()}, {properties['totalGlobalMem'] / 1e9:.0f} GB; {count} found"


def phantom_resolution(settings: CheckSettings) -> float:
    """Resolution in A of a small simulated refinement against its truth: at FSC = 0.5, inside the protein's mask."""
    from sparsecv.engine.io.mrc import read_map
    from sparsecv.engine.refine.run import refine
    from sparsecv.engine.refine.settings import RefineSettings
    from sparsecv.engine.simulate import SimulateSettings, simulate
    from sparsecv.engine.validate.fsc import HALF, fsc, resolution

    with tempfile.TemporaryDirectory(prefix="sparsecv-check-") as name:
        folder = Path(name)
        files = simulate(SimulateSettings(output=folder / "data", particles=PARTICLES, box=BOX, pixel_size=PIXEL_SIZE,
                                          snr=SNR, seed=settings.seed))
        refine(
            RefineSettings(particles=files.particles, reference=files.reference, output=folder / "run",
                           threads=settings.threads, device=settings.device, seed=settings.seed),
        )
        found, truth = read_map(folder / "run" / "run_class001.mrc"), read_map(files.truth_map)
        curve = fsc(found.data, truth.data, read_map(files.mask).data)
        return resolution(curve, HALF, BOX, PIXEL_SIZE).angstrom
