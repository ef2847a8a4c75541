# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconstruction from true poses beside ``relion_reconstruct``: CPU time, memory, and FSC against the truth per shell.

python benchmarks/reconstruct_peers.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Bench, Usage, has, measure, parse, save, table

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.validate.fsc import fsc, resolution

SET, PIXEL_SIZE = "gpcr96", "1.8"
HEADER = ("program", "CPU s", "wall s", "peak MB", "FSC 0.5", "worst shell, unmasked", "worst shell, masked")
MARGIN = 0.005  # of FSC, that a shell may fall behind


def run_all(bench: Bench, truth: Path) -> dict[str, tuple[Usage, Path]]:
    """Usage and map of every program and kernel."""
    found = {}
    for kernel in ("trilinear", "gaussian"):
        path = bench.work / f"reconstruct_{kernel}.mrc"
        usage = bench.sparsecv("reconstruct", "--particles", "truth.star", "--output", str(path), "--kernel", kernel,
                               "--threads", str(bench.threads), "--device", "cpu", log=path.with_suffix(".log"),
                               cwd=truth)  # fmt: skip
        found[f"sparsecv {kernel}"] = usage, path
    if bench.peers and has("relion_reconstruct"):
        path = bench.work / "reconstruct_relion.mrc"
        command = f"relion_reconstruct --i truth.star --o {path} --ctf --angpix {PIXEL_SIZE}".split()
        found["relion_reconstruct"] = measure(command, log=path.with_suffix(".log"), cwd=truth), path
    return found


def main() -> None:
    """Run, compare and print."""
    bench, _ = parse(__doc__)
    bench.warm_up()
    truth = bench.data_set(SET)
    true, mask = read_map(truth / "truth.mrc"), read_map(truth / "mask_protein.mrc").data
    runs = run_all(bench, truth)
    windows = {"unmasked": None, "masked": mask}
    curves = {
        name: {kind: fsc(read_map(path).data, true.data, window) for kind, window in windows.items()}
        for name, (_, path) in runs.items()
    }
    peer = curves.get("relion_reconstruct")
    last = len(true.data) // 2 - 1  # Nyquist's shell is half empty
    rows = []
    for name, (usage, _) in runs.items():
        at = [resolution(curves[name][kind], 0.5, len(true.data), true.pixel_size).angstrom for kind in curves[name]]
        row = [name, usage.cpu_s, usage.wall_s, f"{usage.peak_mb:.0f}", f"{at[1]:.2f} / {at[0]:.2f}"]
        for kind in ("unmasked", "masked"):
            gain = curves[name][kind][1 : last + 1] - peer[kind][1 : last + 1] if peer else np.zeros(1)
            worst = int(np.argmin(gain))
            row.append(f"{gain[worst]:+.4f} (shell {worst + 1})" if peer else "-")
        rows.append(row)
    print(f"{SET}, all particles, true poses. FSC 0.5: against the truth, A, protein mask / unmasked. Worst shell:\n"
          f"the smallest difference of FSC to RELION's in shells 1 to {last}; {-MARGIN:g} is allowed")  # fmt: skip
    table("reconstruct_peers", HEADER, rows)
    save("reconstruct_peers", {"usage": {name: usage for name, (usage, _) in runs.items()}, "curves": curves})


if __name__ == "__main__":
    main()
