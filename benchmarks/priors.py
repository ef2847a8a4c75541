# SPDX-License-Identifier: GPL-3.0-or-later
"""The priors beside each other on the sets, from the same start: poses and maps against the truth, several seeds.

    python benchmarks/priors.py gpcr96 gpcr64 t20s96 --seeds 1 2 3

FSC at 0.5 of the unregularised half maps' average against the truth; "hard" is that of ``sparsecv reconstruct`` from
the poses of run_data.star, in which no posterior averages noise away. The overhead is the CPU time of the M-step's
prior, its choices included, over all the rest of the same refinement.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import Bench, Usage, parse, read_usage, save, table
from evaluate import Evaluation, evaluate
from refine_peers import HALVES, TASKS

REGULARISERS = ("wiener", "nonuniform", "sparse-tv")
HEADER = ("set", "prior", "seed", "angle, deg", "shift, A", "> 30 deg", "FSC, soft", "FSC, hard", "CPU s", "overhead",
          "peak MB")  # fmt: skip


def refined(bench: Bench, name: str, regulariser: str, seed: int, more: list[str]) -> tuple[Path, Usage]:
    """Folder and usage of a refinement; a finished one is taken as it is."""
    task, label = TASKS[name], "_".join([name, regulariser, str(seed), *more]).replace("--", "").replace(" ", "_")
    folder, log = bench.work / f"prior_{label}", bench.work / f"prior_{label}.log"
    if log.with_suffix(".usage.json").is_file() and (folder / HALVES[1]).is_file():
        return folder, read_usage(log.with_suffix(".usage.json"))
    print(f"{label} ...", flush=True)
    used = bench.sparsecv(
        "refine", "--particles", "input.star", "--reference", task.reference, "--output", str(folder), "--symmetry",
        task.symmetry, "--particle-diameter", f"{task.diameter:g}", "--initial-lowpass", f"{task.low_pass:g}",
        "--threads", str(bench.threads), "--device", "cpu", "--seed", str(seed), "--regulariser", regulariser,
        *task.ours, *more, log=log, cwd=bench.data_set(name),
    )  # fmt: skip
    return folder, used


def hard_poses(bench: Bench, name: str, folder: Path) -> Evaluation:
    """Evaluation of half maps reconstructed from the poses alone."""
    out = folder / "hard.mrc"
    halves = [out.with_name(f"hard_half{number}.mrc") for number in (1, 2)]
    if not halves[1].is_file():
        bench.sparsecv("reconstruct", "--particles", str(folder / "run_data.star"), "--output", str(out), "--halves",
                       "--symmetry", TASKS[name].symmetry, "--threads", str(bench.threads), "--device", "cpu",
                       log=folder / "hard.log", cwd=bench.data_set(name))  # fmt: skip
    return evaluate(bench.data_set(name), folder / "run_data.star", *halves, TASKS[name].symmetry)


def fsc_cell(found: Evaluation) -> str:
    """Protein mask / unmasked, A."""
    return f"{found.fsc05['average masked']:.2f} / {found.fsc05['average unmasked']:.2f}"


def main() -> None:
    """Run, evaluate and print."""
    bench, given = parse(
        __doc__,
        ("sets", {"nargs": "*", "default": list(TASKS), "metavar": "SET"}),
        ("--seeds", {"type": int, "nargs": "+", "default": [1, 2, 3]}),
        ("--regularisers", {"nargs": "+", "default": list(REGULARISERS)}),
        ("--options", {"nargs": "+", "default": [], "help": "further options of refine"}),
    )
    bench.warm_up()
    cells, figures, means = [], {}, []
    for name in given.sets:
        for regulariser in given.regularisers:
            errors = []
            for seed in given.seeds:
                folder, usage = refined(bench, name, regulariser, seed, given.options)
                half1, half2 = (folder / half for half in HALVES)
                soft = evaluate(bench.data_set(name), folder / "run_data.star", half1, half2, TASKS[name].symmetry)
                hard = hard_poses(bench, name, folder)
                status = json.loads((folder / "status.json").read_text())
                spent = sum(entry.get("regulariser_cpu_s", 0.0) for entry in status["history"])
                overhead = spent / (usage.cpu_s - spent)
                cells.append([
                    name, regulariser, seed, f"{soft.angle_deg:.3f}", f"{soft.shift_A:.3f}", f"{soft.lost:.1%}",
                    fsc_cell(soft), fsc_cell(hard), f"{usage.cpu_s:.0f}", f"{overhead:.0%}", f"{usage.peak_mb:.0f}",
                ])  # fmt: skip
                errors.append((soft.angle_deg, soft.fsc05["average masked"]))
                figures[f"{name} {regulariser} {seed}"] = {
                    "usage": asdict(usage), "soft": asdict(soft), "hard": asdict(hard), "overhead": overhead,
                }  # fmt: skip
            means.append([name, regulariser, *(f"{value:.3f}" for value in np.mean(errors, axis=0))])
        table("priors", HEADER, cells)
        table("priors_mean", ("set", "prior", "mean angle, deg", "mean FSC 0.5, soft, protein mask, A"), means)
    save("priors", figures)


if __name__ == "__main__":
    main()
