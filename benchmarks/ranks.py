# SPDX-License-Identifier: GPL-3.0-or-later
"""One refinement in one process of two threads, in two of one, and in three: time, and how much the maps differ.

    python benchmarks/ranks.py gpcr64 t20s96 gpcr96 --repeats 3

Runs alternate, and the least wall time of each counts: other work on the machine only ever adds to it. On a machine
with fewer than three cores the row of three processes says nothing about time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from common import Bench, Usage, launcher, parse, save, table, unbound
from refine_peers import HALVES, TASKS

from sparsecv.engine.io.mrc import read_map

WAYS = {"1 x 2 threads": (1, 2), "2 x 1 thread": (2, 1), "3 x 1 thread": (3, 1)}
ALONE = (1, 1)  # what maps are compared with: with two threads, too, parts of sums are added up in another order
HEADER = ("set", "processes", "wall s", "of 1 x 2", "CPU s", "map", "half maps")
MAP = "run_class001.mrc"


def refined(bench: Bench, name: str, way: tuple[int, int], prior: str) -> tuple[Path, Usage]:
    """Folder and usage of one run with so many processes and threads of each."""
    task, (ranks, threads) = TASKS[name], way
    folder = bench.work / f"ranks_{name}_{ranks}_{threads}"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["--particles", "input.star", "--reference", task.reference, "--output", str(folder), "--symmetry",
             task.symmetry, "--particle-diameter", f"{task.diameter:g}", "--initial-lowpass", f"{task.low_pass:g}",
             "--threads", str(threads), "--device", "cpu", "--seed", "1", "--regulariser", prior,
             *task.ours]  # fmt: skip
    log = folder.with_suffix(".log")
    start = [] if ranks == 1 else [launcher(), "-n", str(ranks)]
    return folder, bench.sparsecv("refine", *words, log=log, cwd=bench.data_set(name), start=start)


def difference(first: Path, second: Path) -> float:
    """Largest difference of two maps over the largest value."""
    one, other = (read_map(path).data for path in (first, second))
    return float(np.abs(one - other).max() / np.abs(one).max())


def main() -> None:
    """Run and compare."""
    bench, given = parse(
        __doc__, ("sets", {"nargs": "*", "default": list(TASKS), "choices": list(TASKS)}),
        ("--repeats", {"type": int, "default": 3}),
        ("--regulariser", {"default": "wiener"}),
    )  # fmt: skip
    unbound()
    bench.warm_up()
    rows, kept = [], {}
    for name in given.sets:
        found: dict[str, list[Usage]] = {way: [] for way in WAYS}
        folders = {}
        for _ in range(given.repeats):
            for label, way in WAYS.items():
                folders[label], used = refined(bench, name, way, given.regulariser)
                found[label].append(used)
        alone = min(used.wall_s for used in found["1 x 2 threads"])
        folder, _ = refined(bench, name, ALONE, given.regulariser)
        for label, uses in found.items():
            wall, cpu = min(used.wall_s for used in uses), min(used.cpu_s for used in uses)
            halves = max(difference(folder / half, folders[label] / half) for half in HALVES)
            map_ = difference(folder / MAP, folders[label] / MAP)
            rows.append([name, label, wall, wall / alone, cpu, f"{map_:.1e}", f"{halves:.1e}"])
        kept[name] = found
    print(f"{given.regulariser}, least of {given.repeats} runs; map: largest difference to one process of one thread, "
          "over the largest value")  # fmt: skip
    table("ranks", HEADER, rows)
    save("ranks", {"usage": kept, "rows": rows})


if __name__ == "__main__":
    main()
