# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``sparsecv check`` finds: of each thing what is there, what will be used and why, what to do where it lacks."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecv import environment
from sparsecv.constants import CUDA_EXTRAS
from sparsecv.engine import machine
from sparsecv.engine.ranks.launch import OPEN_MPI
from sparsecv.engine.threads import available_cores

OLDEST_DRIVERS = {"12": environment.OLDEST_DRIVER, "13": 580}  # that run a generation of CUDA
OLDEST_CAPABILITY = (7, 0)  # for which kernels are compiled in the tests
LITTLE_SPACE = 1e9  # bytes
QUOTA = Path("/sys/fs/cgroup/cpu.max")
LIBRARY = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
FAMILIES = {"Open MPI": "Open MPI", "MPICH": "MPICH", "HYDRA": "MPICH", "Intel": "Intel MPI", "MVAPICH": "MVAPICH"}
GET_MPI = "pip install 'mpi4py>=4', and 'mpich>=4.2' where the system has no MPI"


@dataclass(frozen=True)
class Finding:
    """One thing: what is there, what will be used of it and why, and a remedy where something is missing."""

    topic: str
    found: str
    used: str = ""
    remedy: str = ""

    def lines(self) -> list[str]:
        """As ``check`` prints it."""
        lines = [f"{self.topic}: {self.found}"]
        lines += [f"  used: {self.used}"] if self.used else []
        return lines + ([f"  remedy: {self.remedy}"] if self.remedy else [])


def examine(device: str, threads: int, asked_threads: int, output: Path | None) -> Iterator[Finding]:
    """Everything, one after the other; ``device`` and threads as asked for, and the threads that are in use."""
    yield of_processor(threads, asked_threads)
    yield of_memory()
    yield from of_linear_algebra()
    yield from of_gpu(device)
    yield of_mpi()
    yield of_folder("temporary folder", Path(tempfile.gettempdir()))
    if output is not None:
        yield of_folder("output folder", output)


# ------------------------------------------------------------------------------------------------ processor and memory
def of_processor(threads: int, asked: int) -> Finding:
    """Cores, and why so many threads."""
    cores, there = available_cores(), os.cpu_count() or 1
    why = f"all {cores} cores that this process may use; --threads N takes fewer"
    if asked > cores:
        why = f"{asked} were asked for, and more than the {cores} cores would only be slower"
    elif asked:
        why = "as asked"
    remedy = ""
    quota = _quota()
    if cores < there:
        remedy = f"{there - cores} cores are kept from this process: ask for more (taskset, Slurm's --cpus-per-task)"
    if quota is not None and quota < threads:
        remedy = f"--threads {max(1, math.floor(quota))}: the container is given the time of {quota:g} cores only"
    found = f"{machine.processor()}; {cores} of {there} cores available, threads in use: {threads}"
    return Finding("processor", found, f"{threads} threads: {why}", remedy)


def _quota() -> float | None:
    """Cores' worth of time that the control group gives to the process; None without a limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = QUOTA.read_text(encoding="ascii").split()
        return int(limit) / int(period)
    return None


def of_memory() -> Finding:
    """What is free of the host's."""
    used = "what is free, less a reserve: refine plans its last iteration before the first (--memory GB takes less)"
    return Finding("memory", machine.memory(), used)


def of_linear_algebra() -> Iterator[Finding]:
    """BLAS, and whether it knows the processor."""
    import numpy as np
    import threadpoolctl

    np.ones((2, 2)) @ np.ones((2, 2))
    has_avx512 = "avx512f" in (machine.first_value("/proc/cpuinfo", "flags") or "").split()
    seen = set()
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] != "blas":
            continue
        core = library.get("architecture", "?")
        found = f"{library['internal_api']} {library['version']}, kernels for {core}"
        remedy = ""
        if has_avx512 and core == "Haswell":
            # wheels do not know the newest processors and fall back to kernels without AVX-512
            remedy = "the processor has AVX-512: OPENBLAS_CORETYPE=SkylakeX in the environment may be faster"
        if found not in seen:
            seen.add(found)
            yield Finding("linear algebra", found, remedy=remedy)


# ----------------------------------------------------------------------------------------------------------------- GPU
def of_gpu(asked: str) -> Iterator[Finding]:
    """Driver, CuPy and the device, on which the remedy depends."""
    from sparsecv.kernels import gpu_problem

    driver: int = environment.driver_version()  # type: ignore[no-untyped-call]
    wheels, problem = machine.cupy_wheels(), gpu_problem()
    yield Finding("driver", _driver_words(driver, problem is None))
    yield Finding("CuPy", _wheel_words(wheels, driver), remedy=_wheel_remedy(wheels, driver))
    if problem is not None:
        used = {"auto": "the processor, as no GPU can be used", "cpu": "the processor, as asked",
                "gpu": "nothing: a GPU was asked for"}[asked]
        remedy = "" if asked == "cpu" else _gpu_remedy(wheels, driver)
        yield Finding("device", f"processor; no GPU: {problem}", used, remedy)
        return
    import cupy

    yield from _devices(cupy, asked)


def _driver_words(driver: int, is_used: bool) -> str:
    if not driver:
        return "nvidia-smi does not answer, but CUDA finds a driver" if is_used else "none of NVIDIA is seen"
    runs = [generation for generation, oldest in OLDEST_DRIVERS.items() if driver >= oldest]
    return f"NVIDIA {driver}, runs CUDA {' and '.join(runs)}" if runs else f"NVIDIA {driver}, too old for CUDA 12"


def fitting_wheel(driver: int) -> str | None:
    """The distribution of CuPy that suits a driver, as the installation chooses it; None where none does."""
    extras: set[str] = environment.cuda_extras("auto", driver)  # type: ignore[no-untyped-call]
    return next((f"cupy-cuda{key}x" for key, extra in CUDA_EXTRAS.items() if extra in extras), None)


def _install(driver: int) -> str:
    wheel = fitting_wheel(driver) or f"cupy-cuda{min(OLDEST_DRIVERS)}x"
    return f"pip install '{wheel}[ctk]>=14' into sparsecv's environment"


def _wheel_words(wheels: dict[str, str], driver: int) -> str:
    found = ", ".join(f"{name} {number}" for name, number in wheels.items()) or "not installed"
    fitting = fitting_wheel(driver)
    if driver and fitting:
        found += f"; {fitting} suits the driver"
    return found


def _wheel_remedy(wheels: dict[str, str], driver: int) -> str:
    """What is wrong with what is installed; empty where nothing is."""
    if len(wheels) > 1:
        return f"they overwrite each other: pip uninstall -y {' '.join(wheels)}, then {_install(driver)}"
    for generation, oldest in OLDEST_DRIVERS.items():
        if 0 < driver < oldest and f"cupy-cuda{generation}x" in wheels and fitting_wheel(driver):
            return (f"CUDA {generation} needs driver {oldest} or later: pip uninstall -y {' '.join(wheels)}, then "
                    f"{_install(driver)}; or update the driver")
    return ""


def _gpu_remedy(wheels: dict[str, str], driver: int) -> str:
    """What brings a GPU into use, by what is missing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if 0 < driver < environment.OLDEST_DRIVER:
        return f"update the NVIDIA driver to {environment.OLDEST_DRIVER} or later"
    if not driver:
        text = (f"none without an NVIDIA card; with one, install its driver ({environment.OLDEST_DRIVER} or later), or "
                "start the container with its GPUs (docker run --gpus all)")
        return text if wheels else f"{text}, and {_install(0)}"
    if not wheels:
        return _install(driver)
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} in the environment hides all GPUs: unset it, or name one"
    return _wheel_remedy(wheels, driver) or (
        "see whether nvidia-smi lists a GPU, and whether the batch system has given one to this job"
        + ("" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})")
    )


def _devices(cupy: Any, asked: str) -> Iterator[Finding]:
    """One finding per GPU; the first is that of a single process."""
    runtime = cupy.cuda.runtime
    count = int(runtime.getDeviceCount())
    versions = (f"CuPy's CUDA {_dotted(runtime.runtimeGetVersion())}, the driver runs up to "
                f"{_dotted(runtime.driverGetVersion())}")
    for number in range(count):
        found = runtime.getDeviceProperties(number)
        with cupy.cuda.Device(number):
            free, total = runtime.memGetInfo()
        capability = int(found["major"]), int(found["minor"])
        words = (f"GPU: {machine.text(found['name'])}, {machine.gigabytes(total)}, {machine.gigabytes(free)} free, "
                 f"compute capability {capability[0]}.{capability[1]}; number {number + 1} of {count}; {versions}")
        used = f"by process {number + 1} of mpirun"
        if number == 0:
            used = "as a GPU is there; --device cpu takes the processor" if asked == "auto" else "as asked"
        remedy = ""
        if not _has_compiler(cupy):
            remedy = "CuPy finds no NVRTC, which compiles kernels: install it with [ctk], as 'cupy-cuda12x[ctk]'"
        elif capability < OLDEST_CAPABILITY:
            remedy = "older than compute capability 7.0 (Volta), for which nothing is tested: --device cpu"
        elif free < total / 2:
            remedy = "other programs hold more than half of its memory: nvidia-smi says which"
        yield Finding("device", words, "no, --device cpu was asked for" if asked == "cpu" else used, remedy)


def _has_compiler(cupy: Any) -> bool:
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception:  # what is missing shows as one error or another
        return False
    return True


def _dotted(version: int) -> str:
    """CUDA's number of a version, such as 12040, as 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


# ----------------------------------------------------------------------------------------------------------------- MPI
def of_mpi() -> Finding:
    """mpi4py, the library that it loads, and a launcher of the same family."""
    number = machine.version("mpi4py")
    launchers = {path: family for path in _launchers() if (family := _family(_said([path, "--version"])))}
    if number is None:
        return Finding("MPI", "mpi4py is not installed", "one process",
                       f"only to share a refinement between processes: {GET_MPI}")  # fmt: skip
    said = _library()
    library = _family(said)
    if library is None:
        reason = said.splitlines()[-1] if said else "no answer"
        return Finding("MPI", f"mpi4py {number} finds no library of MPI ({reason})", "one process", GET_MPI)
    found = f"mpi4py {number} with {library}"
    fitting = [path for path, family in launchers.items() if family == library]
    if not fitting:  # refine makes mpi4py load Open MPI where its launcher has started it
        for path, family in launchers.items():
            if family == "Open MPI" and _family(_library(MPI4PY_LIBMPI=OPEN_MPI)) == family:
                fitting, found = [path], f"mpi4py {number} with Open MPI, as {path} is of it"
                break
    if fitting:
        return Finding("MPI", f"{found}; {fitting[0]}",
                       f"one process now; {fitting[0]} -n N sparsecv refine ... shares a refinement between N")
    if launchers:
        path, family = next(iter(launchers.items()))
        remedy = f"start processes with the mpirun of {library}, or name the library of {family} in MPI4PY_LIBMPI"
        return Finding("MPI", f"{found}, but {path} is of {family}", "one process", remedy)
    remedy = "load the module of the system's MPI, or pip install 'mpich>=4.2', which brings mpiexec"
    return Finding("MPI", f"{found}; no mpirun or mpiexec on the PATH", "one process", remedy)


def _library(**variables: str) -> str:
    """What the MPI that mpi4py loads says of itself, asked in another process: loading it can end one."""
    return _said([sys.executable, "-c", LIBRARY], **variables)


def _launchers() -> list[str]:
    """Those of the environment before those of the system."""
    own = str(Path(sys.executable).parent)
    found = [shutil.which("mpiexec", path=own), shutil.which("mpirun", path=own)]
    return list(dict.fromkeys(path for path in (*found, shutil.which("mpirun"), shutil.which("mpiexec")) if path))


def _family(said: str) -> str | None:
    """Which MPI says this of itself."""
    return next((family for word, family in FAMILIES.items() if word in said), None)


def _said(command: list[str], **variables: str) -> str:
    """What a program prints, on either stream; empty where it cannot be started or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
                              env={**os.environ, **variables}, errors="replace")  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout + done.stderr).strip()


# ------------------------------------------------------------------------------------------------------------- folders
def of_folder(topic: str, folder: Path) -> Finding:
    """Free space, and whether files can be replaced as a whole and linked there."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return Finding(topic, f"{there} is no folder", remedy="choose another")
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryDirectory(prefix=".sparsecv-check-", dir=there) as name:
            has_links = _replaces_and_links(Path(name))
    except OSError as error:
        return Finding(topic, f"{folder} cannot be written to ({error.strerror})",
                       remedy="choose another, or TMPDIR for the temporary folder")  # fmt: skip
    found = f"{folder}, {machine.gigabytes(free)} free; files are replaced as a whole"
    found += ", hard links" if has_links else ", no hard links"
    used = "" if has_links else "copies of the maps for a deposition"
    remedy = "" if free > LITTLE_SPACE else "make room: a run keeps maps, pictures and two checkpoints"
    return Finding(topic, found, used, remedy)


def _replaces_and_links(folder: Path) -> bool:
    """Write, replace and link files; returns whether links exist there. OSError where files cannot be replaced."""
    first, second = folder / "first", folder / "second"
    first.write_text("1", encoding="ascii")
    second.write_text("2", encoding="ascii")
    second.replace(first)
    try:
        os.link(first, second)
    except OSError:
        return False
    return True
