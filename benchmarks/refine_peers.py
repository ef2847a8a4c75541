# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements beside RELION's, from the same start, evaluated against the truth.

    python benchmarks/refine_peers.py gpcr64 t20s96 gpcr96

RELION runs with three ranks of one thread: a leader that computes nothing, and a follower for each half set; its CPU
time is that of the two followers. sparsecv runs with one thread. ``--keep`` takes finished runs from the work folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import METER, Bench, Usage, has, measure, parse, read_usage, save, table
from evaluate import Evaluation, evaluate

HALVES = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
RELION = (
    "relion_refine_mpi --auto_refine --split_random_halves --dont_combine_weights_via_disc --preread_images --pool 30 "
    "--pad 2 --ctf --flatten_solvent --zero_mask --oversampling 1 --offset_step 2 --low_resol_join_halves 40 --norm "
    "--scale --j 1 --random_seed 1"
).split()
HEADER = ("set", "program", "CPU s", "x ours", "wall s", "peak MB", "angle deg", "shift A", "FSC, own", "FSC, shared")
GLOBAL = "--firstiter_cc --healpix_order 2 --maxsig 500".split()


@dataclass(frozen=True)
class Task:
    """One set: symmetry, diameter in A, start, and what the programs are told beyond what they always are."""

    symmetry: str
    diameter: float
    reference: str
    low_pass: float
    ours: tuple[str, ...]
    relion: tuple[str, ...]


TASKS = {
    "gpcr64": Task("C1", 160, "ref40.mrc", 40, (), (*GLOBAL, "--auto_local_healpix_order", "3", "--offset_range", "3")),
    "t20s96": Task("D7", 195, "ref40.mrc", 40, (), (*GLOBAL, "--auto_local_healpix_order", "4", "--offset_range", "5")),
    "gpcr96": Task("C1", 160, "start_map.mrc", 15, ("--local",),
                   tuple("--healpix_order 4 --auto_local_healpix_order 4 --sigma_ang 4 --offset_range 3".split())),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One program on one set: usage, and the evaluations by our script and by the shared one."""

    program: str
    usage: Usage
    ours: Evaluation
    shared: dict[str, Any]


def run_sparsecv(bench: Bench, name: str, folder: Path, *, keep: bool) -> Usage:
    """Refine a set with this checkout."""
    task, truth, log = TASKS[name], bench.data_set(name), bench.work / f"sparsecv_{name}.log"
    if keep and log.with_suffix(".usage.json").is_file() and (folder / HALVES[1]).is_file():
        return read_usage(log.with_suffix(".usage.json"))
    print(f"sparsecv on {name} ...", flush=True)
    return bench.sparsecv(
        "refine", "--particles", "input.star", "--reference", task.reference, "--output", str(folder),
        "--symmetry", task.symmetry, "--particle-diameter", f"{task.diameter:g}", "--initial-lowpass",
        f"{task.low_pass:g}", "--threads", str(bench.threads), "--device", "cpu", "--seed", "1", *task.ours, log=log,
        cwd=truth,
    )  # fmt: skip


def run_relion(bench: Bench, name: str, folder: Path, *, keep: bool) -> Usage:
    """Refine a set with RELION; CPU time of both followers, peak memory of the larger, wall time of the whole."""
    task, truth, log = TASKS[name], bench.data_set(name), bench.work / f"relion_{name}.log"
    figures = [folder / f"usage_rank{rank}.json" for rank in (1, 2)]
    if not (keep and all(path.is_file() for path in figures) and (folder / HALVES[1]).is_file()):
        print(f"RELION on {name} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        environment = {"SPARSECV_NICE_LEADER": "1"}
        command = "mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n 3".split()
        if os.geteuid() == 0:
            command.append("--allow-run-as-root")
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        command += [sys.executable, METER, str(folder / "usage_rank{rank}.json"), *RELION, "--o", str(folder / "run"),
                    "--i", "input.star", "--ref", task.reference, "--ini_high", f"{task.low_pass:g}", "--sym",
                    task.symmetry, "--particle_diameter", f"{task.diameter:g}", *task.relion]  # fmt: skip
        measure(command, log=log, cwd=truth, environment=environment)
    followers = [read_usage(path) for path in figures]
    whole = read_usage(log.with_suffix(".usage.json"))
    return Usage(sum(one.cpu_s for one in followers), whole.wall_s, max(one.peak_mb for one in followers))


def judge(bench: Bench, name: str, program: str, folder: Path, usage: Usage) -> Row:
    """Both evaluations of a finished run."""
    truth, symmetry = bench.data_set(name), TASKS[name].symmetry
    star, halves = folder / "run_data.star", [folder / half for half in HALVES]
    answer = bench.work / f"evaluate_{program}_{name}.json"
    subprocess.run(
        [sys.executable, str(bench.shared / "bench" / "evaluate.py"), "--truth", str(truth), "--star", str(star),
         "--half1", str(halves[0]), "--half2", str(halves[1]), "--sym", symmetry, "--json", str(answer)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return Row(program, usage, evaluate(truth, star, *halves, symmetry), json.loads(answer.read_text()))


def cells_of(name: str, rows: list[Row]) -> list[list[object]]:
    """Rows of the table for one set."""
    cells: list[list[object]] = []
    for row in rows:
        ours, shared = row.ours, row.shared
        ratio = f"{row.usage.cpu_s / rows[0].usage.cpu_s:.1f}" if row is not rows[0] else "1"
        cells.append([
            name, row.program, f"{row.usage.cpu_s:.0f}", ratio, f"{row.usage.wall_s:.0f}", f"{row.usage.peak_mb:.0f}",
            f"{ours.angle_deg:.2f}", f"{ours.shift_A:.2f}",
            f"{ours.fsc05['average masked']:.2f} / {ours.fsc05['average unmasked']:.2f}",
            f"{shared['halfavg_vs_truth_protein_mask']['0.5']:.2f} / {shared['halfavg_vs_truth_unmasked']['0.5']:.2f}",
        ])  # fmt: skip
    return cells


def main() -> None:
    """Run, evaluate and print."""
    bench, given = parse(__doc__, ("sets", {"nargs": "*", "default": list(TASKS), "metavar": "SET"}),
                         ("--keep", {"action": "store_true", "help": "take finished runs as they are"}),
                         ("--keep-peers", {"action": "store_true", "help": "the same for RELION's only"}))  # fmt: skip
    cold = bench.warm_up()
    print(f"first run after installation, with the compilation of the kernels: {cold.cpu_s:.0f} s CPU", flush=True)
    with_relion = bench.peers and has("relion_refine_mpi")
    cells: list[list[object]] = []
    figures: dict[str, Any] = {"compilation_and_check": asdict(cold)}
    for name in given.sets:
        folder = bench.work / f"sparsecv_{name}"
        rows = [judge(bench, name, "sparsecv", folder, run_sparsecv(bench, name, folder, keep=given.keep))]
        if with_relion:
            folder = bench.work / f"relion_{name}"
            usage = run_relion(bench, name, folder, keep=given.keep or given.keep_peers)
            rows.append(judge(bench, name, "RELION", folder, usage))
        cells += cells_of(name, rows)
        figures[name] = [asdict(row) for row in rows]
        print("FSC: the half maps' average against the truth at 0.5, A, protein mask / unmasked")
        table("refine_peers", HEADER, cells)
    save("refine_peers", figures)


if __name__ == "__main__":
    main()
