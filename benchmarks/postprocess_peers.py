# SPDX-License-Identifier: GPL-3.0-or-later
"""RELION's programs on the results of our refinement: ``relion_postprocess`` and ``relion_reconstruct``.

    python benchmarks/postprocess_peers.py gpcr96 t20s96

The half maps, with one mask, go through both programs; RELION with several seeds, because its corrected curve and with
it the B-factor depend on one draw of random phases. The Guinier fit goes to Nyquist, both programs' default, and to the
resolution, beyond which the corrected curve is noise.

``relion_reconstruct`` reads our ``run_data.star``: with ``--skip_gridding`` it computes what ``sparsecv reconstruct``
does, by default it iterates on the weights. A refinement's half maps differ from both, as they hold every pose with its
probability and not the best one only; RELION's own refinement shows by how much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Bench, has, measure, parse, save, table
from refine_peers import HALVES, TASKS, run_sparsecv

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.validate.fsc import fsc

SEEDS = 16
NEAR_NYQUIST = 3  # last shells, which are left out
COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


def read_result(path: Path) -> dict[str, Any]:
    """Curves, resolution and B-factor of a ``postprocess.star``."""
    star = StarFile.read(path)
    curves = {name: star.table("fsc").floats(column) for name, column in COLUMNS.items()}
    general = star.table("general")
    return {"curves": curves, "bfactor": float(general.floats("rlnBfactorUsedForSharpening")[0]),
            "resolution": float(general.floats("rlnFinalResolution")[0])}  # fmt: skip


def postprocess_both(bench: Bench, run: Path, folder: Path, high: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Our result and one of RELION's for each seed, with one mask; ``high`` ends the Guinier fit, A, 0 at Nyquist."""
    mask = run / "postprocess_mask.mrc"
    halves = [str(run / half) for half in HALVES]
    ours = folder / f"sparsecv_{high:.0f}"
    bench.sparsecv("postprocess", *halves, "--mask", str(mask), "--autob-highres", f"{high:g}", "--output", str(ours),
                   log=folder / "sparsecv.log")  # fmt: skip
    theirs = []
    pixel_size = read_map(mask).pixel_size
    for seed in range(1, SEEDS + 1):
        out = folder / f"relion_{high:.0f}_{seed}" / "postprocess"
        out.parent.mkdir(parents=True, exist_ok=True)
        command = f"relion_postprocess --i {halves[0]} --i2 {halves[1]} --o {out} --mask {mask} --angpix {pixel_size:g}"
        command += f" --auto_bfac --autob_lowres 10 --autob_highres {high:g} --low_pass -1 --random_seed {seed}"
        measure(command.split(), log=folder / f"relion_{seed}.log")
        theirs.append(read_result(out.with_suffix(".star")))
    return read_result(ours / "postprocess.star"), theirs


def curve_row(name: str, ours: dict[str, Any], theirs: list[dict[str, Any]]) -> list[object]:
    """Largest differences of curves; RELION's corrected curve is the mean over seeds, its spread the largest of any."""
    last = len(ours["curves"]["masked"]) - NEAR_NYQUIST
    stacks = {kind: np.array([one["curves"][kind][1:last] for one in theirs]) for kind in COLUMNS}
    apart = [np.abs(ours["curves"][kind][1:last] - stacks[kind].mean(axis=0)).max() for kind in COLUMNS]
    spread = np.abs(stacks["corrected"] - stacks["corrected"].mean(axis=0)).max()
    resolution = np.mean([one["resolution"] for one in theirs])
    return [name, *(f"{one:.4f}" for one in (*apart, spread)), f"{ours['resolution']:.2f} / {resolution:.2f}"]


def bfactor_row(name: str, ours: dict[str, Any], theirs: list[dict[str, Any]]) -> list[object]:
    """B-factors, and their difference to RELION's mean."""
    b = np.array([one["bfactor"] for one in theirs])
    return [name, f"{ours['bfactor']:.1f}", f"{b.mean():.1f}", f"{b.min():.1f} to {b.max():.1f}",
            f"{100 * (ours['bfactor'] / b.mean() - 1):+.1f} %"]  # fmt: skip


def lowest(first: Path | np.ndarray, second: Path | np.ndarray, last_shell: int) -> str:
    """Lowest FSC of two maps up to a shell."""
    maps = [read_map(one).data if isinstance(one, Path) else one for one in (first, second)]
    curve = fsc(*maps)
    worst = int(np.argmin(curve[1 : last_shell + 1])) + 1
    return f"{curve[worst]:.4f} (shell {worst})"


def reconstruct_again(bench: Bench, name: str, run: Path, folder: Path, last_shell: int) -> list[object]:
    """Our reconstruction from our STAR file, and the average of the half maps, with what RELION makes of the file."""
    task, truth = TASKS[name], bench.data_set(name)
    ours = folder / "sparsecv_reconstruct.mrc"
    bench.sparsecv("reconstruct", "--particles", str(run / "run_data.star"), "--data-dir", str(truth), "--symmetry",
                   task.symmetry, "--output", str(ours), log=ours.with_suffix(".log"))  # fmt: skip
    plain = relion_map(bench, name, run, folder / "relion_plain.mrc", "--skip_gridding")
    theirs = relion_map(bench, name, run, folder / "relion.mrc")
    row: list[object] = [name, lowest(ours, plain, last_shell), lowest(ours, theirs, last_shell)]
    peer = bench.work / f"relion_{name}"
    for folder_of, known in ((run, theirs), (peer, None)):
        if not (folder_of / HALVES[1]).is_file():
            row.append("-")
            continue
        known = known or relion_map(bench, name, folder_of, folder / "relion_of_relion.mrc")
        halves = [read_map(folder_of / half) for half in HALVES]
        ball = sphere(len(halves[0].data), task.diameter / 2 / halves[0].pixel_size)
        row.append(lowest((halves[0].data + halves[1].data) * ball, read_map(known).data * ball, last_shell))
    return row


def relion_map(bench: Bench, name: str, run: Path, path: Path, *options: str) -> Path:
    """``relion_reconstruct`` of the particles of a run."""
    size = f"{read_map(run / HALVES[0]).pixel_size:g}"
    command = ["relion_reconstruct", "--i", str(run / "run_data.star"), "--o", str(path), "--ctf", "--angpix", size]
    command += ["--sym", TASKS[name].symmetry, *options]
    measure(command, log=path.with_suffix(".log"), cwd=bench.data_set(name))
    return path


def main() -> None:
    """Run, compare and print."""
    bench, given = parse(__doc__, ("sets", {"nargs": "*", "default": ["gpcr96", "t20s96"], "metavar": "SET"}))
    bench.warm_up()
    if not (bench.peers and has("relion_postprocess")):
        return
    curves, bfactors, again, figures = [], [], [], {}
    for name in given.sets:
        run, folder = bench.work / f"sparsecv_{name}", bench.work / f"postprocess_{name}"
        folder.mkdir(exist_ok=True)
        run_sparsecv(bench, name, run, keep=True)
        ours, theirs = postprocess_both(bench, run, folder, 0)
        curves.append(curve_row(name, ours, theirs))
        bfactors.append(bfactor_row(f"{name}, 10 A to Nyquist", ours, theirs))
        limited = postprocess_both(bench, run, folder, ours["resolution"])
        bfactors.append(bfactor_row(f"{name}, 10 A to {ours['resolution']:.2f} A", *limited))
        figures[name] = {"sparsecv": ours, "relion": theirs, "fit to the resolution": limited}
        density = read_map(run / HALVES[0])
        box = len(density.data)
        last = min(int(box * density.pixel_size / ours["resolution"]), box // 2 - NEAR_NYQUIST)
        again.append(reconstruct_again(bench, name, run, folder, last))
    print(f"\nlargest difference of FSC in any shell but the last {NEAR_NYQUIST}, to RELION's mean of {SEEDS} seeds")
    table("postprocess_fsc", ["set", *COLUMNS, "RELION's spread", "resolution, A, ours / RELION's"], curves)
    print("B-factors, A^2")
    table("postprocess_b", ["set, range of the fit", "ours", "RELION's mean", "RELION's range", "difference"], bfactors)
    print("run_data.star reconstructed again: lowest FSC with relion_reconstruct's map, up to the resolution")
    header = ("set", "sparsecv reconstruct", "the same, RELION with gridding", "our half maps, in the sphere",
              "RELION's half maps, in the sphere")  # fmt: skip
    table("postprocess_again", header, again)
    save("postprocess_peers", figures | {"reconstruct": again})


if __name__ == "__main__":
    main()
