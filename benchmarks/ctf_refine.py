# SPDX-License-Identifier: GPL-3.0-or-later
"""Planted errors of defocus, beam tilt and magnification: what ctf-refine and relion_ctf_refine find of them.

python benchmarks/ctf_refine.py [defocus] [tilt] [magnification]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, Bench, Usage, has, measure, parse, save, table

from sparsecv.engine.io.mrc import read_map, write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.aberrations import odd_polynomial
from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms, wavelength
from sparsecv.engine.simulate.record import recorded
from sparsecv.engine.validate.fsc import fsc, resolution

SET, SEED = "gpcr96", 5
PARTICLES = {"defocus": 2000, "tilt": 4000, "magnification": 2000}  # 2000 tell a tilt to 13 % of this one
DEFOCUS = 500.0  # A, largest error of a particle, uniform
TILT = (0.3, -0.2)  # mrad
STRETCH, AXIS = 0.005, 25.0  # 1.005 along an axis at so many degrees from x, 0.995 across: 1 %
ERRORS = ("defocus", "tilt", "magnification")
OPTIONS = {"defocus": ("--defocus",), "tilt": ("--beam-tilt",), "magnification": ("--magnification",)}
RELION = {"defocus": ("--fit_defocus", "--fit_mode", "fpfff"), "tilt": ("--fit_beamtilt",),
          "magnification": ("--fit_aniso",)}  # fmt: skip
NARROW = "290"  # A: the width of the errors that are planted, as a prior
HEADER = ("error", "program", "CPU s", "peak MB", "found", "left", "FSC 0.5, A", "shells behind")


@dataclass(frozen=True)
class Case:
    """One kind of error: particles with it, and as they truly are."""

    name: str
    folder: Path
    wrong: ParticleTable
    true: ParticleTable

    @property
    def wrong_star(self) -> Path:
        """The file with the errors."""
        return self.folder / "wrong.star"

    @property
    def true_star(self) -> Path:
        """The file without them."""
        return self.folder / "true.star"


def true_matrix() -> np.ndarray:
    """M of the planted magnification."""
    c, s = np.cos(np.deg2rad(AXIS)), np.sin(np.deg2rad(AXIS))
    turn = np.array([[c, s], [-s, c]])
    return turn.T @ np.diag([1 + STRETCH, 1 - STRETCH]) @ turn


def make_case(bench: Bench, truth: Path, name: str) -> Case:
    """Write both STAR files, and images where the set's own do not have the error."""
    folder = bench.work / f"ctf_refine_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    given = ParticleTable.read(truth / "truth.star")
    given = given.select(np.arange(PARTICLES[name])).with_halves(SEED)
    terms = np.stack(defocus_terms(given.defocus_u, given.defocus_v, given.defocus_angle))
    columns: dict[str, Any] = {}
    optics: dict[str, Any] = {}
    if name == "defocus":
        terms[0] += np.random.default_rng(SEED).uniform(-DEFOCUS, DEFOCUS, len(given))
    else:
        stack = folder / "particles.mrcs"
        if not stack.is_file():
            _record(truth, given, name, stack)
        columns["rlnImageName"] = [f"{number + 1:06d}@{stack}" for number in range(len(given))]
        if name == "tilt":
            optics = {"rlnBeamTiltX": [TILT[0]], "rlnBeamTiltY": [TILT[1]]}
        else:  # defoci are those that a distorted micrograph shows, M^T Q M
            matrix = true_matrix()
            optics = dict(zip(("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
                              ([value] for value in matrix.ravel().tolist()), strict=True))  # fmt: skip
            mean, along, across = terms
            form = matrix.T @ np.moveaxis(np.array([[mean + along, across], [across, mean - along]]), 2, 0) @ matrix
            terms = np.stack([(form[:, 0, 0] + form[:, 1, 1]) / 2, (form[:, 0, 0] - form[:, 1, 1]) / 2, form[:, 0, 1]])
    wrong = dict(zip(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), defocus_of_terms(*terms), strict=True))
    rows = np.arange(len(given))
    given.write(folder / "wrong.star", columns=columns | (wrong if name != "tilt" else {}), keep=rows)
    given.write(folder / "true.star", columns=columns, optics=optics, keep=rows)
    return Case(name, folder, *(ParticleTable.read(folder / file) for file in ("wrong.star", "true.star")))


def _record(truth: Path, given: ParticleTable, name: str, stack: Path) -> None:
    """Images of the protein in the mean of its belts, with white noise, on the scale of the set's own images."""
    volume = read_map(truth / "truth.mrc").data + read_map(truth / "belt_mean.mrc").data
    group = given.optics[0]
    lam = float(wavelength(np.array(group.voltage_kv)))
    extra: dict[str, Any] = {"matrix": true_matrix()} if name == "magnification" else {
        "odd": odd_polynomial((), TILT, group.cs_mm, lam)}  # fmt: skip
    rng = np.random.default_rng(SEED)
    parameters, rotations = given.ctf_parameters(), given.rotations
    first = slice(0, 64)
    plain = recorded(volume, rotations[first], -given.shifts[first], parameters[first], given.pixel_size)
    images, _ = given.read_images(np.arange(64))
    gain = float((plain * images).sum() / (plain**2).sum())

    def batches() -> Any:
        for start in range(0, len(given), 64):
            part = slice(start, start + 64)
            signal = recorded(volume, rotations[part], -given.shifts[part], parameters[part], given.pixel_size, **extra)
            yield np.float32(gain) * signal + rng.standard_normal(signal.shape, dtype=np.float32)

    write_stack(stack, batches(), given.pixel_size)


def reconstruct(bench: Bench, star: Path, output: Path, *words: str) -> None:
    """A map from the poses and optics of a file."""
    bench.sparsecv("reconstruct", "--particles", str(star), "--output", str(output), "--threads", str(bench.threads),
                   "--device", "cpu", *words, log=output.with_suffix(".log"))  # fmt: skip


def refined(bench: Bench, case: Case, mask: Path) -> dict[str, tuple[Usage, Path]]:
    """What each program makes of the wrong particles, with half maps made of them at true poses."""
    folder, wrong = case.folder, case.wrong_star
    reconstruct(bench, wrong, folder / "wrong.mrc", "--halves")
    halves = [str(folder / f"wrong_half{half}.mrc") for half in (1, 2)]
    kinds = {"sparsecv": ()} | ({f"sparsecv, prior {NARROW} A": ("--defocus-prior", NARROW)}
                                if case.name == "defocus" else {})  # fmt: skip
    found = {}
    for number, (name, words) in enumerate(kinds.items()):
        output = folder / f"sparsecv{number}"
        usage = bench.sparsecv("ctf-refine", "--particles", str(wrong), "--half1", halves[0], "--half2", halves[1],
                               "--mask", str(mask), "--output", str(output), "--threads", str(bench.threads),
                               *OPTIONS[case.name], *words, log=folder / f"sparsecv{number}.log")  # fmt: skip
        found[name] = usage, output / "particles_ctf_refined.star"
    if bench.peers and has("relion_ctf_refine"):
        bench.sparsecv("postprocess", *halves, "--mask", str(mask), "--output", str(folder / "post"),
                       "--no-deposition", log=folder / "post.log")  # fmt: skip
        (folder / "relion").mkdir(exist_ok=True)
        command = ["relion_ctf_refine", "--i", str(wrong), "--f", str(folder / "post" / "postprocess.star"), "--m1",
                   halves[0], "--m2", halves[1], "--mask", str(mask), "--o", f"{folder / 'relion'}/", "--j", "1",
                   *RELION[case.name]]  # fmt: skip
        usage = measure(command, log=folder / "relion.log", cwd=folder)
        found["relion_ctf_refine"] = usage, folder / "relion" / "particles_ctf_refine.star"
    return found


def judged(case: Case, star: Path) -> tuple[str, str, dict[str, float]]:
    """What was found of the error, what is left of it, and numbers."""
    found = ParticleTable.read(star)
    order = np.argsort(found.image_index)  # the set has one stack
    truth = case.true
    if case.name == "defocus":
        before = case.wrong.defocus_u - truth.defocus_u
        left = found.defocus_u[order] - truth.defocus_u
        slope = float(np.polyfit(before, before - left, 1)[0])
        rms, median = float(np.sqrt((left**2).mean())), float(np.median(np.abs(left)))
        rms_before = float(np.sqrt((before**2).mean()))
        return (f"{100 * slope:.0f} %", f"{rms:.0f} A of {rms_before:.0f}, median {median:.0f}",
                {"slope": slope, "rms": rms, "median": median, "rms_before": rms_before})  # fmt: skip
    group = found.optics[0]
    if case.name == "tilt":
        tilt = np.array(group.beam_tilt)
        left = tilt - TILT
        return (f"{tilt[0]:.3f}, {tilt[1]:.3f} mrad", f"{np.hypot(*left) / np.hypot(*TILT) * 100:.1f} %",
                {"x": float(tilt[0]), "y": float(tilt[1])})  # fmt: skip
    sizes = np.linalg.svd(group.matrix, compute_uv=False)
    # the isotropic part and a turn are those of the map and of the poses
    def traceless(matrix: np.ndarray) -> np.ndarray:
        symmetric = (matrix + matrix.T) / 2
        return np.asarray(symmetric - np.trace(symmetric) / 2 * np.eye(2))

    left = traceless(group.matrix) - traceless(true_matrix())
    share = float(np.linalg.norm(left) / np.linalg.norm(traceless(true_matrix())))
    return (f"{100 * (sizes[0] / sizes[1] - 1):.3f} %", f"{100 * share:.1f} %",
            {"anisotropy": float(sizes[0] / sizes[1] - 1), "left": share})  # fmt: skip


def main() -> None:
    """Run, compare and print."""
    bench, given = parse(__doc__, ("errors", {"nargs": "*", "default": list(ERRORS), "help": "which to plant"}))
    bench.warm_up()
    truth = bench.data_set(SET)
    mask_path = truth / "mask_protein.mrc"
    true, mask = read_map(truth / "truth.mrc"), read_map(mask_path).data
    box, path = len(true.data), RESULTS / "ctf_refine.json"
    kept: dict[str, Any] = json.loads(path.read_text()).get("errors", {}) if path.is_file() else {}

    def reached(density: Path) -> list[float]:
        """FSC 0.5 against the truth, A, in the mask and without."""
        curves = [fsc(read_map(density).data, true.data, window) for window in (mask, None)]
        return [resolution(curve, 0.5, box, true.pixel_size).angstrom for curve in curves]

    for name in given.errors:
        case = make_case(bench, truth, name)
        runs = refined(bench, case, mask_path)
        reconstruct(bench, case.true_star, case.folder / "true.mrc")
        ends = {kind: reached(case.folder / f"{kind}.mrc") for kind in ("true", "wrong")}
        rows: list[Sequence[object]] = [
            [name, "as planted", "-", "-", "-", "-", _ends(ends["wrong"]), _behind(ends["wrong"], ends["true"], true)],
            [name, "without error", "-", "-", "-", "-", _ends(ends["true"]), "0"],
        ]
        numbers = {}
        for number, (program, (usage, star)) in enumerate(runs.items()):
            output = case.folder / f"refined{number}.mrc"
            reconstruct(bench, star, output)
            found, left, numbers[program] = judged(case, star)
            at = reached(output)
            rows.append([name, program, usage.cpu_s, f"{usage.peak_mb:.0f}", found, left, _ends(at),
                         _behind(at, ends["true"], true)])  # fmt: skip
        kept[name] = {"rows": rows, "numbers": numbers, "fsc05": ends}
        save("ctf_refine", {"errors": kept})
    print(f"{SET}, {PARTICLES} particles at true poses; half maps made of them with the error. FSC 0.5: all of them\n"
          "reconstructed, against the truth, protein mask / unmasked; shells behind the map without error, likewise")
    table("ctf_refine", HEADER, [row for name in ERRORS if name in kept for row in kept[name]["rows"]])


def _ends(at: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in at)


def _behind(at: list[float], best: list[float], true: Any) -> str:
    length = len(true.data) * true.pixel_size
    return " / ".join(f"{length / there - length / here:.1f}" for here, there in zip(at, best, strict=True))


if __name__ == "__main__":
    main()
