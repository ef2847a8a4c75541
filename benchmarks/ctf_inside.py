# SPDX-License-Identifier: GPL-3.0-or-later
"""Planted errors of defocus: refinements with and without CTF refinement inside, and one between two of them.

python benchmarks/ctf_inside.py

gpcr96 from its perturbed poses, without errors of defocus and with some for each particle. The protein's mask is given,
but for rows that say sphere. CTF share: of the wall time of the iterations, without pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from common import Bench, Usage, parse, save, table
from ctf_refine import DEFOCUS, NARROW, SEED, SET
from evaluate import evaluate
from refine_peers import HALVES, TASKS

from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms

HEADER = ("defoci", "refinement", "CPU s", "CTF, %", "defocus left, A", "angle, deg", "shift, A", "FSC 0.5, A",
          "mean FSC")  # fmt: skip
INSIDE = ("--refine-defocus",)
SPARED = ("pictures", "checkpoint")
SHELLS = slice(1, 46)  # of Nyquist at 47: over which the FSC with the truth is averaged


def write_particles(truth: Path, folder: Path) -> dict[str, Path]:
    """The set's particles with half sets drawn once, with the defoci that they have and with wrong ones."""
    given = ParticleTable.read(truth / "input.star").with_halves(SEED)
    terms = np.stack(defocus_terms(given.defocus_u, given.defocus_v, given.defocus_angle))
    terms[0] += np.random.default_rng(SEED).uniform(-DEFOCUS, DEFOCUS, len(given))
    wrong = zip(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), defocus_of_terms(*terms), strict=True)
    files = {name: folder / f"{name}.star" for name in ("right", "wrong")}
    given.write(files["right"], halves=given.halves)
    given.write(files["wrong"], halves=given.halves, columns=dict(wrong))
    return files


def refined(bench: Bench, particles: Path, output: Path, mask: Path | None, *words: str) -> Usage:
    """A refinement with the options of the set's task."""
    task = TASKS[SET]
    window = () if mask is None else ("--mask", str(mask))
    reference = bench.data_set(SET) / task.reference
    return bench.sparsecv("refine", "--particles", str(particles), "--reference", str(reference), "--output",
                          str(output), "--threads", str(bench.threads), "--device", "cpu",
                          "--particle-diameter", f"{task.diameter:g}", "--initial-lowpass", f"{task.low_pass:g}",
                          *task.ours, *window, *words, log=output.with_suffix(".log"))  # fmt: skip


def judged(truth: Path, output: Path) -> list[object]:
    """What a row shows of a finished refinement."""
    found, true = ParticleTable.read(output / "run_data.star"), ParticleTable.read(truth / "truth.star")
    rows = found.image_index  # the set has one stack
    left = (found.defocus_u + found.defocus_v - true.defocus_u[rows] - true.defocus_v[rows]) / 2
    result = evaluate(truth, output / "run_data.star", *(output / name for name in HALVES))
    records = [json.loads(path.read_text())["seconds"] for path in sorted(output.glob("run_it*_record.json"))]
    whole = sum(value for one in records for name, value in one.items() if name not in SPARED)
    share = 100 * sum(one.get("CTF", 0.0) for one in records) / whole
    ends = " / ".join(f"{result.fsc05[f'average {kind}']:.2f}" for kind in ("masked", "unmasked"))
    means = " / ".join(f"{np.mean(result.curves[kind][SHELLS]):.3f}" for kind in ("masked", "unmasked"))
    poses = f"{result.angle_deg:.3f}", f"{result.shift_A:.3f}"
    return [f"{share:.0f}", f"{np.sqrt((left**2).mean()):.0f}", *poses, ends, means]


def main() -> None:
    """Run, compare and print."""
    bench, _ = parse(__doc__)
    bench.warm_up()
    truth, folder = bench.data_set(SET), bench.work / "ctf_inside"
    folder.mkdir(parents=True, exist_ok=True)
    files, mask = write_particles(truth, folder), truth / "mask_protein.mrc"
    rows: list[list[object]] = []

    def add(defoci: str, told: str, particles: Path, output: Path, window: Path | None, *words: str) -> Usage:
        usage = refined(bench, particles, output, window, *words)
        rows.append([defoci, told, usage.cpu_s, *judged(truth, output)])
        return usage

    for defoci, particles in files.items():
        for kind, window in (("", mask), (", sphere", None)):
            for told, words in (("as ever", ()), ("CTF inside", INSIDE)):
                output = folder / f"{defoci}_{told.split()[0]}{kind.strip(', ')}"
                add(defoci, told + kind, particles, output, window, *words)
    for number, words in enumerate(((), ("--defocus-prior", NARROW))):
        between = folder / f"between{number}"
        bench.sparsecv("ctf-refine", "--run", str(folder / "wrong_as"), "--mask", str(mask), "--defocus", "--output",
                       str(between), "--threads", str(bench.threads), *words, log=folder / f"between{number}.log")
        told = "twice, ctf-refine between" + (f", prior {NARROW} A" if words else "")
        changed, output = between / "particles_ctf_refined.star", folder / f"twice{number}"
        add("wrong", told, changed, output, mask, "--local-sigma", "2")
    save("ctf_inside", {"rows": rows})
    table("ctf_inside", HEADER, rows)


if __name__ == "__main__":
    main()
