# SPDX-License-Identifier: GPL-3.0-or-later
"""A full iteration of both halves at several boxes and numbers of particles: time by stage, and memory.

    python benchmarks/gpu_iterations.py --boxes 128 256 360 --particles 10000 100000 1000000
    python benchmarks/gpu_iterations.py --device cpu --tiny

Particles are made on the fly (`synthetic.py`). A million is always streamed; fewer stay on the device as far as the
engine's memory plan lets them, and then the second of two iterations is timed, which finds them there. *Global* is an
exhaustive search with shells up to 12 A, *fine* one around known poses with shells up to 80 % of Nyquist. Rows that a
time limit leaves out say so. Each row is written as soon as it is known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from common import save, table
from device import Device, parse
from stages import NAMES, Spent, iterate, refinement_of
from synthetic import Specimen

from sparsecv.engine.refine.settings import REGULARISERS

GLOBAL_RESOLUTION = 12.0  # A
FINE_PART = 0.8  # of Nyquist
STREAMED = 1_000_000  # particles from which images never stay
VIEWS = 4096
GREATEST_POOL = 4e9  # bytes of noise-free views on the host
HEADER = ("box", "particles", "images", "stage", "band", "s", "wall s", "images/s", *NAMES, "rest", "reading",
          "peak GB")  # fmt: skip


def band_of(specimen: Specimen, stage: str) -> int:
    """Highest shell that is compared."""
    geometry = specimen.geometry
    wanted = geometry.shell_of(GLOBAL_RESOLUTION) if stage == "global" else int(FINE_PART * geometry.nyquist_shell)
    return max(5, min(wanted, int(FINE_PART * geometry.nyquist_shell)))


def row_of(box: int, particles: int, where: str, stage: str, band: int, spent: Spent) -> list[object]:
    """A row of the table."""
    seconds = [spent.seconds[name] for name in (*NAMES, "rest")]
    return [box, particles, where, stage, band, spent.total, spent.wall, particles / spent.total, *seconds,
            spent.reading, spent.peak_bytes / 1e9]  # fmt: skip


def measured(
    device: Device, specimen: Specimen, particles: int, stage: str, prior: str, readers: int
) -> tuple[Any, Spent]:
    """The row and all figures of one case."""
    band, is_streamed = band_of(specimen, stage), particles >= STREAMED
    refinement, stack, where = refinement_of(device, specimen, particles, stage, band, prior=prior,
                                             is_streamed=is_streamed, readers=readers)  # fmt: skip
    before = refinement.state.stage, refinement.state.band
    spent = iterate(device, refinement, stack)
    if device.is_gpu and where != "streamed":
        refinement.state.stage, refinement.state.band = before
        spent = iterate(device, refinement, stack)
    return row_of(specimen.geometry.box, particles, where, stage, band, spent), spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(__doc__, arguments, ("--boxes", {"type": int, "nargs": "+", "default": [128, 256, 360]}),
                  ("--particles", {"type": int, "nargs": "+", "default": [10_000, 100_000, 1_000_000]}),
                  ("--stages", {"nargs": "+", "default": ["fine", "global"], "choices": ["global", "local", "fine"]}),
                  ("--regulariser", {"default": "wiener", "choices": list(REGULARISERS)}),
                  ("--readers", {"type": int, "default": 8, "help": "threads that put images together"}),
                  ("--limit", {"type": float, "default": float("inf"), "help": "s, after which no row is begun"}),
                  )  # fmt: skip
    device: Device = given.device
    boxes, counts, views = given.boxes, given.particles, VIEWS
    if given.tiny:
        boxes, counts, views = [48], [24], 8
    readers = given.readers if device.is_gpu else 1
    started, rows, kept = time.perf_counter(), [], []
    for box in boxes:
        specimen = Specimen.of(device.ops, box, min(views, max(64, int(GREATEST_POOL / (4 * box**2)))))
        for particles in counts:
            for stage in given.stages:
                if time.perf_counter() - started > given.limit:
                    rows.append([box, particles, "", stage, "", *["left out: no time"], *[""] * (len(HEADER) - 6)])
                    continue
                row, spent = measured(device, specimen, particles, stage, given.regulariser, readers)
                rows.append(row)
                kept.append({"box": box, "particles": particles, "stage": stage, "band": row[4], **asdict(spent)})
                save("gpu_iterations", {"device": device.name, "readers": readers, "rows": kept})
                device.forget()
    print(f"{device.name}; seconds by stage, and of the host for putting images together")
    table("gpu_iterations", HEADER, rows)


if __name__ == "__main__":
    main()
