# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of maps against models, beside other programs and known answers.

    python benchmarks/model_map_peers.py

FSC beside servalcat, Q-scores beside jqscore (both from PyPI, in an environment of their own that this script makes in
the work folder), on two real pairs and two simulated ones; models displaced and found again; the resolution of a map
with a known one; time and memory of 12,500 atoms in 256^3. Tables go into docs/benchmarks.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(common.ROOT / "tests"))

from models import atoms_of, half, noisy, structure_of

from sparsecv.engine.io.models import read_structure, write_structure
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.model_map.atoms import Motion
from sparsecv.engine.model_map.density import debye_waller, model_transform
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.simulate.phantom import membrane_protein

PEERS = ("servalcat==0.4.142", "jqscore==0.2.0")
REAL = (("7CEC", "7cec_A.cif", "emd_30342_A_z4.mrc"), ("3J6B", "3J6B_9.pdb", "emd_2566_3J6B_9.mrc"))
SIMULATED = (("simulated 4 A", 4.0, 1.6, 60.0, 1), ("simulated 6.5 A", 6.5, 2.4, 0.0, 2))  # name, A, pixel, B, seed
QSCORES = """
import json, sys, jqscore
model, density = sys.argv[1:3]
atoms = jqscore.read_pdb(model) if model.endswith(".pdb") else jqscore.read_cif(model)
data, origin, voxel = jqscore.read_mrc(density)
found = {}
for name, compatible in (("mapq", True), ("plain", False)):
    result = jqscore.compute_qscores(atoms, data, origin, voxel, mapq_compat=compatible)
    found[name] = [float(q) for q, a in zip(result.atom_qscores, atoms) if a.element not in ("H", "D")]
print("RESULT " + json.dumps(found))
"""


Rows = list[tuple[object, ...]]


@dataclass(frozen=True)
class Pair:
    """A model and a map that belong together."""

    name: str
    model: Path
    density: Path
    truth: float | None = None


def peers(bench: common.Bench) -> Path:
    """The environment with the peers; made where it is not there yet."""
    folder = bench.work / "model_map_peers"
    if not (folder / "bin" / "servalcat").exists():
        print("installing servalcat and jqscore ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *PEERS], check=True)
    return folder / "bin"


def simulated_pairs(folder: Path) -> list[Pair]:
    """The built-in protein, and maps of it whose FSC against it falls through 0.5 at a known resolution."""
    folder.mkdir(parents=True, exist_ok=True)
    atoms, _ = membrane_protein(1, "C1")
    model = folder / "protein.cif"
    structure = structure_of(atoms, "ABCD")
    write_structure(model, structure)
    pairs = []
    for name, resolution, pixel, blur, seed in SIMULATED:
        box = int(2 * np.ceil(75 / pixel))
        grid = Grid(box, pixel, np.full(3, -(box // 2) * pixel))
        clean = model_transform(atoms_of(structure), grid) * debye_waller(grid, blur)
        path = folder / f"{name.split()[1]}.mrc"
        origin = (float(grid.origin[0]), float(grid.origin[1]), float(grid.origin[2]))
        write_map(path, noisy(clean, half(resolution), grid, seed), pixel, origin)
        pairs.append(Pair(name, model, path, resolution))
    return pairs


def validated(bench: common.Bench, pair: Pair, output: Path, *options: str) -> tuple[dict[str, Any], common.Usage]:
    """Summary and cost of ``sparsecv validate``."""
    used = bench.sparsecv("validate", "--model", str(pair.model), "--map", str(pair.density), "--output", str(output),
                          "--threads", str(bench.threads), *options, log=output.with_suffix(".log"))  # fmt: skip
    return json.loads((output / "summary.json").read_text()), used


def servalcat_curves(
    binaries: Path, ours: Path, folder: Path, sharpening: float, same_factors: bool
) -> dict[str, np.ndarray]:
    """FSC by servalcat of our cube, mask and model, at origin 0; ``masked`` and ``unmasked``, by shell.

    With ``same_factors`` it uses the scattering factors that gemmi has for electrons, otherwise its own way, X-ray
    factors through the Mott-Bethe formula.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cube, mask = read_map(ours / "validate_map.mrc"), read_map(ours / "validate_mask.mrc")
    structure = read_structure(ours / "fitted.cif")
    shift = gemmi.Position(*(-value for value in cube.origin))
    for found in structure[0].all():
        found.atom.pos += shift
    for name, one in (("map", cube), ("mask", mask)):
        write_map(folder / f"{name}.mrc", one.data, one.pixel_size)
    write_structure(folder / "model.cif", structure)
    if same_factors:
        _add_factors(folder / "model.cif")
    curves = {}
    for name in ("masked", "unmasked"):
        more = ["--mask", "mask.mrc", "--mask_model"] if name == "masked" else ["--mask_radius", "0"]
        if name == "masked" and sharpening:
            more += ["--b_before_mask", f"{sharpening}"]
        command = [str(binaries / "servalcat"), "fsc", "--model", "model.cif", "--map", "map.mrc", *more, "--csv",
                   "-o", f"{name}.dat", "--source", "custom" if same_factors else "electron"]  # fmt: skip
        with (folder / f"{name}.log").open("w") as log:
            subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
        curves[name] = _read_servalcat(folder / f"{name}.csv", cube.data.shape[0] * cube.pixel_size)
    return curves


def _add_factors(path: Path) -> None:
    """Write gemmi's electron scattering factors into a model, where servalcat looks for custom ones."""
    document = gemmi.cif.read(str(path))
    block = document.sole_block()
    symbols = [gemmi.Element(symbol).name for symbol in block.find_values("_atom_site.type_symbol")]
    numbers = {symbol: number for number, symbol in enumerate(sorted(set(symbols)), 1)}
    block.find_loop("_atom_site.id").get_loop().add_columns(["_atom_site.scat_id"], ".")
    column = block.find_values("_atom_site.scat_id")
    for row, symbol in enumerate(symbols):
        column[row] = str(numbers[symbol])
    names = ["scat_id", *(f"coef_{kind}{k}" for kind in "ab" for k in range(1, 6))]
    loop = block.init_loop("_lmb_scat_coef.", names)
    for symbol, number in numbers.items():
        loop.add_row([str(number), *(f"{value:.6f}" for value in gemmi.Element(symbol).c4322.get_coefs())])
    document.write_file(str(path))


def _read_servalcat(path: Path, length: float) -> np.ndarray:
    """Shells (rounded length of the index) and their FSC, (n, 2); shells that servalcat has merged are left out."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    columns = {name: k for k, name in enumerate(rows[0])}
    found = []
    for row in rows[1:]:
        high, low = length / float(row[columns["d_min"]]), length / float(row[columns["d_max"]])
        shell = round((low + high) / 2)
        if high - low < 1.0:
            found.append((shell, float(row[columns["fsc_FC_full"]])))
    return np.array(found)


def compare_fsc(bench: common.Bench, binaries: Path, pairs: list[Pair]) -> Rows:
    """Largest difference of any shell, with the same mask, model and treatment of B."""
    rows: Rows = []
    for pair in pairs:
        for sharpening in ("0", "60"):
            output = bench.work / "model_map" / f"{pair.density.stem}_{sharpening}"
            validated(bench, pair, output, "--sharpening", sharpening, "--mask-edge", "8")
            table = StarFile.read(output / "model_fsc.star").table("model_fsc")
            angstrom = table.floats("rlnAngstromResolution")
            for same_factors in (True, False):
                peer = servalcat_curves(binaries, output, output / f"servalcat_{int(same_factors)}", float(sharpening),
                                        same_factors)  # fmt: skip
                for name, column in (("masked", "fscModelMasked"), ("unmasked", "fscModelUnmasked")):
                    if name == "unmasked" and sharpening != "0":
                        continue
                    shells, values = peer[name][:, 0].astype(int), peer[name][:, 1]
                    usable = (shells > 0) & (shells < len(angstrom) - 1)
                    difference = np.abs(table.floats(column)[shells[usable]] - values[usable])
                    finer = difference[angstrom[shells[usable]] < 10]
                    what = f"{name}, sharpened by {sharpening} A^2 before" if sharpening != "0" else name
                    rows.append((pair.name, what, "the same" if same_factors else "its own", int(usable.sum()),
                                 float(difference.max()), float(finer.max()), float(difference.mean())))  # fmt: skip
    common.table("model_map_fsc", ("pair", "curve", "scattering factors", "shells", "largest difference",
                                   "finer than 10 A", "mean"), rows)  # fmt: skip
    return rows


def compare_q(bench: common.Bench, binaries: Path, pairs: list[Pair]) -> Rows:
    """Means and correlation over atoms."""
    rows: Rows = []
    for pair in pairs:
        output = bench.work / "model_map" / f"{pair.density.stem}_0"
        done = subprocess.run([str(binaries / "python"), "-c", QSCORES, str(pair.model), str(pair.density)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        peer = json.loads(done.stdout.split("RESULT ")[1])
        block = gemmi.cif.read(str(output / "fitted.cif")).sole_block()
        texts, elements = (list(block.find_values(f"_atom_site.{name}")) for name in ("Q-score", "type_symbol"))
        ours = np.array([float("nan" if text == "?" else text)
                         for text, element in zip(texts, elements, strict=True) if element != "H"])  # fmt: skip
        known = np.isfinite(ours)
        for name, label in (("plain", "the map itself"), ("mapq", "the map resampled, as MapQ does")):
            other = np.array(peer[name])
            rows.append((pair.name, label, int(known.sum()), float(ours[known].mean()), float(other[known].mean()),
                         float(np.corrcoef(ours[known], other[known])[0, 1])))  # fmt: skip
    common.table("model_map_q", ("pair", "jqscore reads", "atoms", "ours, mean", "jqscore, mean",
                                 "correlation of atoms"), rows)  # fmt: skip
    return rows


def find_again(bench: common.Bench, pairs: list[Pair], trials: int = 3) -> Rows:
    """Models displaced by 8 A and 15 degrees, and by anything; where they come back to."""
    rows: Rows = []
    for pair in pairs:
        atoms = atoms_of(read_structure(pair.model))
        for fit in ("rigid", "global"):
            errors = []
            for seed in range(trials):
                rng = np.random.default_rng(seed)
                turn, shift = rng.normal(size=(2, 3))
                if fit == "rigid":
                    rotation = Rotation.from_rotvec(np.deg2rad(15) * turn / np.linalg.norm(turn))
                    displacement = 8 * shift / np.linalg.norm(shift)
                else:
                    rotation, displacement = Rotation.random(rng=rng), 100 * shift
                away = Motion(rotation.as_matrix(), displacement, atoms.centre)
                output = bench.work / "model_map" / f"{pair.density.stem}_{fit}{seed}"
                output.mkdir(parents=True, exist_ok=True)
                moved = output / "moved.cif"
                write_structure(moved, atoms.moved(away).structure)
                _, used = validated(bench, Pair(pair.name, moved, pair.density), output, "--fit", fit)
                found = atoms_of(read_structure(output / "fitted.cif"))
                back = _motion(atoms.positions, found.positions)
                errors.append((*back, used.cpu_s, used.wall_s))
            worst = np.max(errors, axis=0)
            rows.append((pair.name, fit, trials, *(float(value) for value in worst)))
    common.table("model_map_fit", ("pair", "fit", "trials", "off by, A", "off by, degrees", "CPU, s", "wall, s"), rows)
    return rows


def _motion(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Displacement of the centre and turn between two copies of a model, A and degrees."""
    centres = first.mean(axis=0), second.mean(axis=0)
    turn, _ = Rotation.align_vectors(second - centres[1], first - centres[0])
    return float(np.linalg.norm(centres[1] - centres[0])), float(np.rad2deg(turn.magnitude()))


def known_resolution(bench: common.Bench, pairs: list[Pair]) -> Rows:
    """Crossing at 0.5 of maps with a known one, without a mask: the noise of these maps fills the box."""
    rows: Rows = []
    for pair in pairs:
        output = bench.work / "model_map" / f"{pair.density.stem}_0"
        found = json.loads((output / "summary.json").read_text())
        at = found["fsc_unmasked"]["0.5"]
        length = found["box"] * found["pixel_size"]
        rows.append((pair.name, pair.truth, at["angstrom"], f"{at['interval_95'][0]:.2f} to {at['interval_95'][1]:.2f}",
                     abs(length / at["angstrom"] - length / pair.truth)))  # fmt: skip
    common.table("model_map_known", ("map", "true, A", "found, A", "95 % of resampled curves", "shells apart"), rows)
    return rows


def large(bench: common.Bench) -> Rows:
    """12,500 atoms in 256^3, displaced, fitted, with half maps."""
    folder = bench.work / "model_map" / "large"
    folder.mkdir(parents=True, exist_ok=True)
    atoms, _ = membrane_protein(1, "C2")
    structure = structure_of(atoms, sorted(set(atoms.chains.tolist())))
    grid = Grid(256, 1.06, np.full(3, -128 * 1.06))
    clean = model_transform(atoms_of(structure), grid)
    model = atoms_of(structure)
    rotation = Rotation.from_rotvec(np.deg2rad(15) * np.array([0.6, 0.0, 0.8])).as_matrix()
    away = model.moved(Motion(rotation, np.array([4.0, -5.0, 4.8]), model.centre))
    write_structure(folder / "moved.cif", away.structure)
    halves = [noisy(clean, half(4.5), grid, seed) for seed in (1, 2)]
    origin = (float(grid.origin[0]), float(grid.origin[1]), float(grid.origin[2]))
    names = ("map", "half1", "half2")
    for name, density in zip(names, ((halves[0] + halves[1]) / 2, *halves), strict=True):
        write_map(folder / f"{name}.mrc", density, grid.pixel_size, origin)
    rows: Rows = []
    pair = Pair("large", folder / "moved.cif", folder / "map.mrc")
    half_maps = ["--half1", str(folder / "half1.mrc"), "--half2", str(folder / "half2.mrc")]
    runs = {"rigid": half_maps[:0], "rigid, half maps": half_maps, "chains, half maps": half_maps,
            "global": half_maps[:0]}  # fmt: skip
    for label, more in runs.items():
        options = ["--fit", label.partition(",")[0], *more]
        output = bench.work / "model_map" / f"large_{label.replace(', ', '_').replace(' ', '_')}"
        found, used = validated(bench, pair, output, *options)
        fitted = atoms_of(read_structure(output / "fitted.cif")).positions
        # the two-fold is along z: a search from anywhere may end at either of two equal places
        copies = (model.positions, model.positions * [-1, -1, 1])
        back = min((_motion(copy, fitted) for copy in copies), key=lambda off: off[1])
        rows.append((label, found["atoms"], found["chains"], used.wall_s, used.cpu_s, used.peak_mb, *back))
    common.table("model_map_large", ("fit", "atoms", "chains", "wall, s", "CPU, s", "peak, MB", "off by, A",
                                     "off by, degrees"), rows)  # fmt: skip
    return rows


def main() -> None:
    """Everything; ``--only`` some of it."""
    bench, given = common.parse(__doc__, ("--only", {"nargs": "*", "default": ["fsc", "q", "fit", "known", "large"]}))
    data = bench.shared / "data"
    real = [Pair(name, data / model, data / density) for name, model, density in REAL]
    simulated = simulated_pairs(bench.work / "model_map" / "simulated")
    parts: dict[str, Callable[[], Rows]] = {
        "fsc": lambda: compare_fsc(bench, peers(bench), [*real, *simulated]),
        "q": lambda: compare_q(bench, peers(bench), [*real, *simulated]),
        "known": lambda: known_resolution(bench, simulated),
        "fit": lambda: find_again(bench, real),
        "large": lambda: large(bench),
    }
    common.save("model_map_peers", {name: part() for name, part in parts.items() if name in given.only})


if __name__ == "__main__":
    main()
