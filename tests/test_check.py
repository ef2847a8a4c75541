# SPDX-License-Identifier: GPL-3.0-or-later
"""What check says of every thing that can be there or not, with drivers, CuPy and MPI that are imitated."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsecv import __version__, cli
from sparsecv.engine import doctor, machine
from sparsecv.engine.doctor import Finding, fitting_wheel, of_folder, of_gpu, of_memory, of_mpi, of_processor
from sparsecv.engine.threads import available_cores

GB = 10**9


class Card:
    """A CuPy with cards in it."""

    def __init__(self, count: int = 1, capability: tuple[int, int] = (9, 0), free: int = 79 * GB,
                 compiler: bool = True) -> None:
        self.cuda = SimpleNamespace(runtime=self, Device=lambda number: contextlib.nullcontext(), nvrtc=self)
        self.count, self.capability, self.free, self.compiler = count, capability, free, compiler

    def getDeviceCount(self) -> int:
        return self.count

    def getDevice(self) -> int:
        return 0

    def getDeviceProperties(self, number: int) -> dict[str, Any]:
        return {"name": b"NVIDIA H100 80GB HBM3", "totalGlobalMem": 80 * GB, "major": self.capability[0],
                "minor": self.capability[1]}  # fmt: skip

    def memGetInfo(self) -> tuple[int, int]:
        return self.free, 80 * GB

    def runtimeGetVersion(self) -> int:
        return 12090

    def driverGetVersion(self) -> int:
        return 12040

    def getVersion(self) -> tuple[int, int]:
        if not self.compiler:
            raise RuntimeError("libnvrtc.so.12 not found")
        return 12, 9


def gpu(
    monkeypatch: pytest.MonkeyPatch, driver: int, wheels: dict[str, str], problem: str | None, asked: str = "auto",
    card: Card | None = None,
) -> dict[str, Finding]:  # fmt: skip
    """Findings on the GPU by topic, on a machine that is like this."""
    monkeypatch.setattr("sparsecv.environment.driver_version", lambda: driver)
    monkeypatch.setattr(machine, "cupy_wheels", lambda: wheels)
    monkeypatch.setattr("sparsecv.kernels.gpu_problem", lambda: problem)
    monkeypatch.setitem(sys.modules, "cupy", card or Card())
    return {finding.topic: finding for finding in of_gpu(asked)}


# ----------------------------------------------------------------------------------------------------------------- GPU
def test_a_card_is_described_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu(monkeypatch, 550, {"cupy-cuda12x": "14.0.1"}, None)
    assert found["driver"] == Finding("driver", "NVIDIA 550, runs CUDA 12")
    assert found["CuPy"] == Finding("CuPy", "cupy-cuda12x 14.0.1; cupy-cuda12x suits the driver")
    words = found["device"].found
    for part in ("NVIDIA H100 80GB HBM3", "80.0 GB, 79.0 GB free", "compute capability 9.0", "number 1 of 1",
                 "CuPy's CUDA 12.9", "up to 12.4"):
        assert part in words, words
    assert found["device"].used.startswith("as a GPU is there") and found["device"].remedy == ""


def test_what_is_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"cupy-cuda12x": "14.0.1"}
    assert gpu(monkeypatch, 550, wheels, None, "gpu")["device"].used == "as asked"
    assert gpu(monkeypatch, 550, wheels, None, "cpu")["device"].used == "no, --device cpu was asked for"
    assert gpu(monkeypatch, 0, {}, "none", "gpu")["device"].used == "nothing: a GPU was asked for"
    found = gpu(monkeypatch, 0, {}, "none", "cpu")["device"]
    assert found.used == "the processor, as asked" and found.remedy == ""


def test_several_cards_and_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecv.environment.driver_version", lambda: 580)
    monkeypatch.setattr("sparsecv.kernels.gpu_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", Card(count=2))
    cards = [finding for finding in of_gpu("auto") if finding.topic == "device"]
    assert len(cards) == 2 and cards[1].used == "by process 2 of mpirun" and "number 2 of 2" in cards[1].found


@pytest.mark.parametrize(
    ("driver", "wheels", "problem", "remedy"),
    [
        (0, {}, "CuPy cannot be imported", "none without an NVIDIA card; with one, install its driver (525 or later)"),
        (0, {}, "CuPy cannot be imported", "and pip install 'cupy-cuda12x[ctk]>=14'"),
        (0, {"cupy-cuda12x": "14.0"}, "CUDA finds no device", "docker run --gpus all"),
        (470, {}, "CuPy cannot be imported", "update the NVIDIA driver to 525 or later"),
        (550, {}, "CuPy cannot be imported", "pip install 'cupy-cuda12x[ctk]>=14' into sparsecv's environment"),
        (550, {"cupy-cuda13x": "14.0"}, "CUDA finds no device", "CUDA 13 needs driver 580 or later: pip uninstall -y"),
        (550, {"cupy-cuda12x": "14.0", "cupy": "13"}, "CuPy cannot be imported", "they overwrite each other"),
        (550, {"cupy-cuda12x": "14.0"}, "CUDA finds no device", "see whether nvidia-smi lists a GPU"),
    ],
)
def test_every_gap_has_a_remedy(
    driver: int, wheels: dict[str, str], problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = gpu(monkeypatch, driver, wheels, problem)["device"]
    assert found.found == f"processor; no GPU: {problem}" and found.used == "the processor, as no GPU can be used"
    assert remedy in found.remedy


def test_cards_that_the_environment_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, said in (("", "hides all GPUs"), ("7", "(CUDA_VISIBLE_DEVICES='7')")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert said in gpu(monkeypatch, 550, {"cupy-cuda12x": "14.0"}, "CUDA finds no device")["device"].remedy


@pytest.mark.parametrize(
    ("card", "remedy"),
    [
        (Card(capability=(6, 1)), "older than compute capability 7.0 (Volta)"),
        (Card(free=10 * GB), "other programs hold more than half of its memory"),
        (Card(compiler=False), "CuPy finds no NVRTC"),
    ],
)
def test_cards_that_work_badly(card: Card, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remedy in gpu(monkeypatch, 550, {"cupy-cuda12x": "14.0"}, None, card=card)["device"].remedy


def test_a_driver_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu(monkeypatch, 0, {"cupy-cuda12x": "14.0"}, None)
    assert found["driver"].found == "nvidia-smi does not answer, but CUDA finds a driver"


@pytest.mark.parametrize(("driver", "wheel"), [(0, "cupy-cuda12x"), (470, None), (525, "cupy-cuda12x"),
                                               (580, "cupy-cuda12x")])
def test_the_wheel_is_the_one_that_is_installed(driver: int, wheel: str | None) -> None:
    assert fitting_wheel(driver) == wheel


# ------------------------------------------------------------------------------------------------------------ the host
def test_threads_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(doctor, "available_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert of_processor(4, 0).used.startswith("4 threads: all 4 cores that this process may use")
    assert of_processor(2, 2).used == "2 threads: as asked" and of_processor(2, 2).remedy == ""
    assert "more than the 4 cores would only be slower" in of_processor(4, 9).used
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert "4 of 64 cores available" in of_processor(4, 0).found and "60 cores are kept" in of_processor(4, 0).remedy
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert of_processor(4, 0).remedy == "--threads 1: the container is given the time of 1.5 cores only"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert "container" not in of_processor(4, 0).remedy


def test_memory_and_what_becomes_of_it() -> None:
    found = of_memory()
    assert found.topic == "memory" and "GB free" in found.found and "--memory" in found.used


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which libraries, by MPI4PY_LIBMPI, and which launchers there are."""

    def there(libraries: dict[str, str], launchers: dict[str, str], version: str | None = "4.1.0") -> Finding:
        monkeypatch.setattr(machine, "version", lambda name: version)
        monkeypatch.setattr(doctor, "_launchers", lambda: list(launchers))
        monkeypatch.setattr(doctor, "_library", lambda MPI4PY_LIBMPI="": libraries.get(MPI4PY_LIBMPI, ""))
        monkeypatch.setattr(doctor, "_said", lambda command, **_: launchers[command[0]])
        return of_mpi()

    return there


def test_mpi_of_all_kinds(mpi: Any) -> None:
    hydra, open_mpi = {"/venv/mpiexec": "HYDRA build details:"}, {"/usr/bin/mpirun": "mpirun (Open MPI) 4.1.4"}
    mpich = {"": "MPICH Version: 4.2.3"}
    assert "pip install 'mpi4py>=4'" in mpi({}, hydra, None).remedy and mpi({}, hydra, None).used == "one process"
    found = mpi(mpich, hydra | open_mpi)
    assert found.found == "mpi4py 4.1.0 with MPICH; /venv/mpiexec" and not found.remedy
    assert "/venv/mpiexec -n N sparsecv refine" in found.used
    found = mpi(mpich | {"libmpi.so.40": "Open MPI v4.1.4"}, open_mpi)
    assert found.found.startswith("mpi4py 4.1.0 with Open MPI, as /usr/bin/mpirun is of it") and not found.remedy
    found = mpi(mpich, open_mpi)
    assert "is of Open MPI" in found.found and "MPI4PY_LIBMPI" in found.remedy
    assert "which brings mpiexec" in mpi(mpich, {}).remedy
    assert "(cannot load MPI library)" in mpi({"": "Traceback\ncannot load MPI library"}, hydra).found


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_folder("output folder", tmp_path / "not" / "yet")
    assert "files are replaced as a whole, hard links" in found.found and not found.used
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "is no folder" in of_folder("output folder", tmp_path / "file").found

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert of_folder("output folder", tmp_path).used == "copies of the maps for a deposition"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert "make room" in of_folder("temporary folder", tmp_path).remedy

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "_replaces_and_links", full)
    assert "cannot be written to (No space left on device)" in of_folder("output folder", tmp_path).found


# --------------------------------------------------------------------------------------------------------- the machine
def test_a_run_can_tell_what_it_runs_on() -> None:
    machine.describe()  # the first look at metadata reads folders
    started = time.perf_counter()
    found = machine.describe(threads=2)
    assert time.perf_counter() - started < 0.25  # 15 ms; other tests run beside this one
    assert found["sparsecv"] == __version__ and found["NumPy"] == np.__version__
    assert found["threads"] == f"2, {available_cores()} of {os.cpu_count()} cores may be used"
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", Card(count=2))
    assert machine.device() == "NVIDIA H100 80GB HBM3, 80.0 GB, compute capability 9.0, number 0 of 2"
    assert machine.device(SimpleNamespace(name="cuda")) == machine.device()
    assert machine.device(SimpleNamespace(name="cpu")) == "processor"
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert machine.device() == "unknown", "a driver that fails ends no run"


def test_damage_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("damaged")

    monkeypatch.setattr(machine, "free_memory", broken)
    monkeypatch.setattr(machine, "available_cores", broken)
    monkeypatch.setattr(machine.metadata, "version", broken)
    found = machine.describe(threads=1)
    assert (found["memory"], found["NumPy"], found["threads"]) == ("unknown", "not installed", "1, unknown may be used")


# ------------------------------------------------------------------------------------------------------- on the screen
@pytest.fixture
def threads_kept(threads_as_before: None) -> Iterator[None]:
    """The command sets threads and their variables."""
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    yield
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def test_check_prints_it_all(threads_kept: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--no-run", "--threads", "1", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"sparsecv {__version__}, Python ") and f"NumPy {np.__version__}" in shown
    for topic in ("processor", "memory", "linear algebra", "driver", "CuPy", "device", "MPI", "temporary folder",
                  "output folder"):
        assert f"\n{topic}: " in shown, topic
    assert "threads in use: 1\n  used: 1 threads: as asked" in shown and not (tmp_path / "out").exists()


def test_check_names_a_missing_device(threads_kept: None, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sparsecv.kernels.gpu_problem", lambda: "CUDA finds no device")
    assert cli.main(["check", "--device", "gpu"]) == cli.NO_DEVICE
    shown = capsys.readouterr()
    assert "device: processor; no GPU: CUDA finds no device" in shown.out
    assert shown.err == "sparsecv: error: no GPU can be used: CUDA finds no device; remedy: --device cpu\n"


def test_check_fails_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "version", lambda name: None if name == "healpix" else "1.0")
    assert cli.main(["check"]) == cli.FAILED
    assert "FAIL: healpix not installed; remedy: pip install 'scipion-em-sparsecv[engine]'" in capsys.readouterr().out
