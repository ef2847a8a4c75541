# SPDX-License-Identifier: GPL-3.0-or-later
"""Band limits of the non-uniform prior on a membrane protein, against the masks of the set; memory at a large box.

    python benchmarks/band_limits.py --seeds 1 2 3 --large 512

Core: the protein's mask above 1/2. Belt: the mask of protein and belt above 1/2, where the protein's is below 0.05.
"""

from __future__ import annotations

import sys

import numpy as np
from common import ROOT, measure, parse, save, table
from priors import refined

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.refine.regularisers.nonuniform import disagreement

SET = "gpcr96"
LARGE = """
import sys
import numpy as np
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.regularisers import NonUniform
from sparsecv.engine.refine.regularisers.nonuniform import Butterworth, RawMaps
from sparsecv.engine.threads import keep_freed_memory, use_threads
from sparsecv.kernels import cpu
box = int(sys.argv[1])
use_threads(int(sys.argv[2]))
keep_freed_memory()
rng = np.random.default_rng(1)
first, second = (rng.standard_normal((box,) * 3, dtype=np.float32) for _ in "12")
inside = sphere(box, 0.4 * box) > 0.5
maps = RawMaps.of_maps(cpu, first, second, inside, 1.0 * box, box // 2 - 1)
del first, second, inside
nonuniform = NonUniform()
found = nonuniform.chosen_family.apply(cpu, maps, None, nonuniform.rule, keep_predictions=False)
print(found.selection.chosen.mean())
"""


def main() -> None:
    """Run, evaluate and print."""
    bench, given = parse(__doc__, ("--seeds", {"type": int, "nargs": "+", "default": [1, 2, 3]}),
                         ("--large", {"type": int, "nargs": "*", "default": [256, 512]}))  # fmt: skip
    bench.warm_up()
    core, around = (read_map(bench.data_set(SET) / f"mask_{name}.mrc").data for name in ("protein", "belt"))
    rows = []
    for seed in given.seeds:
        folder, _ = refined(bench, SET, "nonuniform", seed, [])
        limits = read_map(folder / "run_bandlimit.mrc").data
        inner, belt = (float(np.median(limits[where])) for where in (core > 0.5, (around > 0.5) & (core < 0.05)))
        halves = [read_map(folder / f"run_half{half}_bandlimit.mrc").data for half in (1, 2)]
        rows.append([seed, f"{inner:.2f}", f"{belt:.2f}", f"{belt / inner:.2f}", f"{disagreement(*halves) or 0:.2f}"])
    table("band_limits", ("seed", "core, A", "belt, A", "belt / core", "rms log2, half 1 / half 2"), rows)
    large = []
    for box in given.large:
        used = measure([sys.executable, "-c", LARGE, str(box), str(bench.threads)], log=bench.work / f"large_{box}.log",
                       environment={"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(bench.numba_cache)})  # fmt: skip
        large.append([box, f"{used.cpu_s:.0f}", f"{used.peak_mb / 1024:.2f}"])
    if large:
        table("band_limits_large", ("box, px", "CPU s", "peak GB"), large)
    save("band_limits", {"rows": rows, "large": large})


if __name__ == "__main__":
    main()
