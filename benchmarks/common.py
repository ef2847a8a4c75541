# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: options, data sets, measured commands, and tables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = Path(os.environ.get("SPARSECV_RESULTS", HERE / "results"))
PACKAGES = ("numpy", "scipy", "numba", "finufft", "gemmi", "mrcfile")
METER = str(HERE / "meter.py")
sys.path.insert(0, str(ROOT))  # benchmarks measure this checkout, whatever is installed


@dataclass(frozen=True)
class Usage:
    """What a command used: user + system CPU time and wall time in s, peak resident memory in MB (2^20 bytes)."""

    cpu_s: float
    wall_s: float
    peak_mb: float


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs and what it may use."""

    shared: Path
    work: Path
    threads: int
    peers: bool

    def data_set(self, name: str) -> Path:
        """Folder of a bench set, made by the shared ``bench/make.sh`` where it is not there yet."""
        folder = self.work / name
        if not (folder / "ref40.mrc").is_file():
            print(f"making the set {name} in {folder} ...", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            # the script calls python3: ours, which has its packages, must be found first
            environment = clean_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            with (self.work / f"make_{name}.log").open("w") as log:
                subprocess.run(["bash", str(self.shared / "bench" / "make.sh"), name, str(folder)], env=environment,
                               stdout=log, stderr=log, check=True)  # fmt: skip
        return folder

    def warm_up(self) -> Usage:
        """Compile the kernels into the benchmarks' own cache by a first small run; nothing to do when that is done."""
        stamp = self.work / "kernels.json"
        if stamp.is_file() and stamp.stat().st_mtime > newest_kernel():
            return Usage(**json.loads(stamp.read_text()))
        print("compiling the kernels (sparsecv check) ...", flush=True)
        shutil.rmtree(self.numba_cache, ignore_errors=True)
        used = self.sparsecv("check", "--threads", str(self.threads), log=self.work / "check.log")
        stamp.write_text(json.dumps(asdict(used)))
        return used

    @property
    def numba_cache(self) -> Path:
        """Folder of compiled kernels: the benchmarks' own, so that what was compiled before changes nothing."""
        return self.work / "numba_cache"

    def sparsecv(self, *arguments: str, log: Path, cwd: Path | None = None, start: Sequence[str] = ()) -> Usage:
        """Run this checkout's ``sparsecv``, by a command such as ``mpirun -n 2`` if any, and measure it."""
        environment = {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(self.numba_cache)}
        command = [*start, sys.executable, "-m", "sparsecv.cli", *arguments]
        return measure(command, log=log, cwd=cwd, environment=environment)


def newest_kernel() -> float:
    """Time of the last change of the compiled kernels' source."""
    return max(path.stat().st_mtime for path in (ROOT / "sparsecv" / "kernels").glob("*.py"))


def parse(description: str | None, *more: tuple[str, dict[str, Any]]) -> tuple[Bench, argparse.Namespace]:
    """Options that all benchmarks have, and ``more``; makes the work folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in more:
        parser.add_argument(name, **options)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared",
                        help="folder with bench/ and data/ (default: beside the checkout)")  # fmt: skip
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work", help="for data sets and runs")
    parser.add_argument("--threads", type=int, default=1, help="of sparsecv (RELION's ranks have one each)")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="also run the peers")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    return Bench(given.shared.resolve(), given.work.resolve(), given.threads, given.peers), given


def clean_environment() -> dict[str, str]:
    """The environment with one thread for every library, so that only what is asked for runs in parallel."""
    return dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def measure(
    command: Sequence[str], *, log: Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Usage:
    """Run a command to its end and measure it with all of its children.

    Raises
    ------
    RuntimeError
        If it fails; names the log, which has its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    figures = log.with_suffix(".usage.json")
    with log.open("w") as file:
        done = subprocess.run([sys.executable, METER, str(figures), *command], cwd=cwd, stdout=file, stderr=file,
                              env=clean_environment() | (environment or {}), check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}; see {log}")
    return read_usage(figures)


def read_usage(path: Path) -> Usage:
    """What ``meter.py`` wrote."""
    found = json.loads(path.read_text())
    return Usage(found["cpu_s"], found["wall_s"], found["peak_mb"])


def launcher() -> str:
    """The ``mpiexec`` of this environment's MPI, or the system's."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
    if found is None:
        raise SystemExit("no MPI: install the extra mpi")
    return found


def unbound() -> None:
    """Keep the launcher from binding processes to cores: one that binds each to a core, and one of two threads to none,
    would compare the launchers."""
    os.environ |= {"HYDRA_BINDING": "none", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def has(program: str) -> bool:
    """Whether a peer is installed; says so where it is not."""
    if shutil.which(program):
        return True
    print(f"{program} is not installed: its rows are left out")
    return False


def machine() -> dict[str, str]:
    """Date, processor, cores, and versions of everything that was run."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    if shutil.which("relion_refine"):
        said = subprocess.run(["relion_refine", "--version"], capture_output=True, text=True, check=False)
        found["relion"] = " ".join((said.stdout + said.stderr).split())
    return found


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, and keep it in ``benchmarks/results/NAME.md`` for ``document.py``."""
    text = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in text) for k in range(len(header))]
    padded = [[value.ljust(width) for value, width in zip(row, widths, strict=True)] for row in text]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    drawn = "\n".join(lines)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(drawn + "\n")
    print(f"\n{drawn}\n", flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def save(name: str, figures: dict[str, Any]) -> None:
    """Write the figures with machine and versions to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1, default=_plain) + "\n")
    print(f"written: {path}")


def _plain(value: object) -> object:
    if isinstance(value, Usage):
        return asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
