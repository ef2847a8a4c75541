# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole refinement, from STAR file to post-processed map: time, memory of the device, and what it reached.

    python benchmarks/gpu_refinement.py --box 256 --particles 100000
    python benchmarks/gpu_refinement.py --device cpu --tiny

The data set (`dataset.py`) is made first, which is not timed, and stays in the work folder. Aim: 100,000 particles of
256 px in less than 5 minutes and 64 GB. Memory is the most that the device had in use at any of ten moments per second,
less what was in use before; angle: median difference of the poses to the true ones, whose frame is that of the start.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import save, table
from dataset import data_set
from device import Device, parse
from synthetic import DIAMETER

from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.geometry import angular_distance
from sparsecv.engine.refine.run import refine
from sparsecv.engine.refine.settings import REGULARISERS, RefineSettings
from sparsecv.engine.report.progress import Progress
from sparsecv.kernels import host_memory

AIM_SECONDS, AIM_BYTES = 300.0, 64e9
INTERVAL = 0.1  # s
HEADER = ("box", "particles", "prior", "wall s", "iterations", "peak GB", "FSC 0.143, A", "angle, deg", "aim")


class MemoryWatch:
    """Looks at the device's memory in use, again and again, until the block ends."""

    def __init__(self, device: Device) -> None:
        self._device, self._end = device, threading.Event()
        self.peak = 0

    def _used(self) -> int:
        if self._device.is_gpu:
            free, total = self._device.ops.xp.cuda.runtime.memGetInfo()
        else:
            free, total = host_memory.free_memory()
        return int(total - free)

    def _watch(self) -> None:
        while not self._end.wait(INTERVAL):
            self.peak = max(self.peak, self._used() - self._before)

    def __enter__(self) -> MemoryWatch:
        self._before = self._used()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def refined(
    device: Device, given: Any, box: int, particles: int, iterations: int
) -> tuple[list[object], dict[str, Any]]:
    """A row of the table, and the history."""
    data = data_set(device.ops, given.work, box, particles, threads=given.writers if device.is_gpu else 1)
    device.forget()
    folder = given.work / f"gpu_refinement_{box}_{particles}"
    shutil.rmtree(folder, ignore_errors=True)
    settings = RefineSettings(
        particles=data.particles, reference=data.reference, output=folder, particle_diameter=DIAMETER,
        device="gpu" if device.is_gpu else "cpu", threads=0 if device.is_gpu else given.threads, iterations=iterations,
        regulariser=given.regulariser,
    )  # fmt: skip
    with MemoryWatch(device) as memory:
        started = time.perf_counter()
        result = refine(settings, Progress(interactive=False))
        wall = time.perf_counter() - started
    found = ParticleTable.read(folder / "run_data.star").rotations
    angle = float(np.median(angular_distance(found, data.rotations)))
    is_met = wall < AIM_SECONDS and memory.peak < AIM_BYTES
    aim = ("met" if is_met else "missed") if device.is_gpu and (box, particles) == (256, 100_000) else ""
    row = [box, particles, given.regulariser, wall, len(result.history), memory.peak / 1e9,
           result.postprocess.resolution_0143.angstrom, angle, aim]  # fmt: skip
    return row, {"wall_s": wall, "peak_bytes": memory.peak, "history": result.history}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    given = parse(__doc__, arguments, ("--box", {"type": int, "default": 256}),
                  ("--particles", {"type": int, "default": 100_000}),
                  ("--iterations", {"type": int, "default": 30, "help": "most"}),
                  ("--regulariser", {"default": "wiener", "choices": list(REGULARISERS)}),
                  ("--writers", {"type": int, "default": 8, "help": "threads that write the data set"}),
                  )  # fmt: skip
    device: Device = given.device
    sizes = (40, 40, 2) if given.tiny else (given.box, given.particles, given.iterations)
    row, kept = refined(device, given, *sizes)
    print(device.name)
    table("gpu_refinement", HEADER, [row])
    save("gpu_refinement", {"device": device.name, "row": row, **kept})


if __name__ == "__main__":
    main()
