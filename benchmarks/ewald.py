# SPDX-License-Identifier: GPL-3.0-or-later
"""Correction for the curvature of the Ewald sphere beside ``relion_reconstruct --ewald``: FSC against the truth.

python benchmarks/ewald.py

Exact images of Gaussian blobs in a ball, tests/curved_images.py, in which slow electrons make a small box show as much
of the curvature as 600 A do at 2 A with 300 kV; with noise, true poses, and the same masks for both programs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

from curved_images import BOX, DIAMETER, PIXEL_SIZE, write_set

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.validate.fsc import fsc, resolution

COUNT, SEEDS, NOISE = 400, (1, 2, 3), 3.0
SHELLS = (8, 12, 14, 16, 18, 20, 22)
EDGE_PX = 5  # of the masks of both programs


def ours(bench: common.Bench, folder: Path) -> dict[str, Path]:
    """Maps of sparsecv by what was done."""
    kinds = {"flat": (), "--ewald": ("--ewald",), "--ewald --ewald-hand -1": ("--ewald", "--ewald-hand", "-1")}
    found = {}
    for number, (name, words) in enumerate(kinds.items()):
        path = folder / f"ours{number}.mrc"
        given = ("--particle-diameter", str(DIAMETER)) if words else ()
        bench.sparsecv("reconstruct", "--particles", "particles.star", "--output", str(path), "--device", "cpu",
                       "--threads", str(bench.threads), *words, *given, log=path.with_suffix(".log"), cwd=folder)
        found[f"sparsecv {name}"] = path
    return found


def theirs(folder: Path) -> dict[str, Path]:
    """Maps of RELION by what was done."""
    mask = f"--ewald --mask_diameter {DIAMETER} --width_mask_edge {EDGE_PX}"
    kinds = {"--ctf": "--ctf", "--ewald": mask, "--ewald --skip_weighting": f"{mask} --skip_weighting",
             "--ewald --reverse_curvature": f"{mask} --reverse_curvature"}  # fmt: skip
    found = {}
    for number, (name, words) in enumerate(kinds.items()):
        path = folder / f"theirs{number}.mrc"
        command = f"relion_reconstruct --i particles.star --o {path} --angpix {PIXEL_SIZE} {words}"
        common.measure(command.split(), log=path.with_suffix(".log"), cwd=folder)
        found[f"relion_reconstruct {name}"] = path
    return found


def main() -> None:
    """Make the sets, reconstruct, compare and print."""
    bench, _ = common.parse(__doc__)
    bench.warm_up()
    inside = sphere(BOX, DIAMETER / 2 / PIXEL_SIZE + 2, EDGE_PX)
    curves: dict[str, list[np.ndarray]] = {}
    greys: dict[str, list[float]] = {}
    for seed in SEEDS:
        folder = bench.work / f"ewald{seed}"
        folder.mkdir(exist_ok=True)
        truth = write_set(folder, COUNT, noise=NOISE, seed=seed)
        maps = ours(bench, folder) | (theirs(folder) if bench.peers and common.has("relion_reconstruct") else {})
        for name, path in maps.items():
            density = read_map(path).data
            curves.setdefault(name, []).append(fsc(density * inside, truth * inside))
            greys.setdefault(name, []).append(float(np.sum(density * truth * inside) / np.sum(truth**2 * inside)))
    rows: list[list[object]] = []
    for name, found in curves.items():
        mean = np.mean(found, axis=0)
        at = resolution(mean, 0.5, BOX, PIXEL_SIZE).angstrom
        rows.append([name, *(f"{mean[shell]:.3f}" for shell in SHELLS), f"{at:.3f}", f"{np.mean(greys[name]):.3f}"])
    print(f"{COUNT} images of {BOX} px of {PIXEL_SIZE} A, means of {len(SEEDS)} sets; FSC against the truth in shells")
    common.table("ewald", ("map", *map(str, SHELLS), "FSC 0.5, A", "grey scale"), rows)
    common.save("ewald", {"curves": curves, "grey scales": greys})


if __name__ == "__main__":
    main()
