# SPDX-License-Identifier: GPL-3.0-or-later
"""The same refinement by 1, 2, 4, 8 processes with a GPU each, as far as there are GPUs: wall time and what is gained.

    python benchmarks/gpu_ranks.py --box 256 --particles 100000
    python benchmarks/gpu_ranks.py --device cpu --tiny

The first iterations, which are exhaustive, of the data set of `gpu_refinement.py`, by ``mpiexec -n K sparsecv refine``.
Reading tables, starting processes and writing results are in the time. On the CPU each process has one thread.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from common import ROOT, Usage, launcher, measure, save, table, unbound
from dataset import data_set
from device import Device, parse
from synthetic import DIAMETER

HEADER = ("box", "particles", "processes", "wall s", "CPU s", "times faster", "of the ideal")


def ranks_of(device: Device, asked: list[int] | None, *, is_tiny: bool) -> list[int]:
    """Numbers of processes: what was asked, or powers of two up to the number of GPUs."""
    if asked is not None:
        return asked
    if is_tiny or not device.is_gpu:
        return [1, 2]
    count = device.ops.xp.cuda.runtime.getDeviceCount()
    return [number for number in (1, 2, 4, 8) if number <= count]


def refined(device: Device, given: Any, data: Any, ranks: int, iterations: int) -> Usage:
    """What so many processes take."""
    folder = given.work / f"gpu_ranks_{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["--particles", str(data.particles), "--reference", str(data.reference), "--output", str(folder),
             "--particle-diameter", f"{DIAMETER:g}", "--device", "gpu" if device.is_gpu else "cpu",
             "--threads", "0" if device.is_gpu else "1", "--iterations", str(iterations)]  # fmt: skip
    start = [] if ranks == 1 else [launcher(), "-n", str(ranks)]
    return measure([*start, sys.executable, "-m", "sparsecv.cli", "refine", *words], log=folder.with_suffix(".log"),
                   environment={"PYTHONPATH": str(ROOT)})  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    given = parse(__doc__, arguments, ("--box", {"type": int, "default": 256}),
                  ("--particles", {"type": int, "default": 100_000}),
                  ("--iterations", {"type": int, "default": 4}),
                  ("--ranks", {"type": int, "nargs": "+", "help": "default: 1, 2, 4, 8, as far as there are GPUs"}),
                  ("--writers", {"type": int, "default": 8, "help": "threads that write the data set"}),
                  )  # fmt: skip
    device: Device = given.device
    box, particles, iterations = (40, 40, 2) if given.tiny else (given.box, given.particles, given.iterations)
    data = data_set(device.ops, given.work, box, particles, threads=given.writers if device.is_gpu else 1)
    device.forget()
    unbound()
    rows: list[list[object]] = []
    first = 0.0
    for ranks in ranks_of(device, given.ranks, is_tiny=given.tiny):
        used = refined(device, given, data, ranks, iterations)
        first = first or used.wall_s * ranks
        gain = first / used.wall_s
        rows.append([box, particles, ranks, used.wall_s, used.cpu_s, gain, gain / ranks])
        save("gpu_ranks", {"device": device.name, "iterations": iterations, "rows": rows})
    print(f"{device.name}, {iterations} iterations; times faster: than one process, or than the fewest there were")
    table("gpu_ranks", HEADER, rows)


if __name__ == "__main__":
    main()
