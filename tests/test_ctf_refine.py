# SPDX-License-Identifier: GPL-3.0-or-later
"""CTF refinement: closed forms and finite differences, planted errors that are found, and inputs that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_optics import BOX, CS, PIXEL_SIZE, VOLTAGE, Planted, Set, make
from scipy.stats import chi2

from sparsecv import cli
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.aberrations import (
    even_coefficients,
    even_polynomial,
    monomials,
    odd_coefficients,
    odd_polynomial,
    split_coma,
)
from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms, wavelength
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.fourier import backward, forward, shell_indices
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.ctf_refine.aberrations import PhaseSums, fit_odd
from sparsecv.engine.refine.ctf_refine.defocus import Profile, Rings, best_change, refine_defocus
from sparsecv.engine.refine.ctf_refine.observations import Observer, References, measured
from sparsecv.kernels import ops

LAMBDA = float(wavelength(np.array(VOLTAGE)))
TILT, TREFOIL = (0.3, -0.2), (70.0, -90.0)  # mrad; radians A^3 of Z_3^-3 and Z_3^3
EVEN = np.array([0, 0, 0, 0, 900, -600, 300, 450, -750.0])
MAGNIFICATION = np.array([[1.006, 0.003], [0.003, 0.996]])

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sets are made."""
    return tmp_path_factory.mktemp("ctf")


@cache
def planted(folder: Path, name: str) -> Set:
    """A set with one kind of error, made once."""
    kinds = {
        "none": Planted(),
        "defocus": Planted(defocus=500, astigmatism=(200, -150)),
        "odd": Planted(defocus=300, odd=odd_polynomial([0, 0, TREFOIL[0], 0, 0, TREFOIL[1]], TILT, CS, LAMBDA)),
        "even": Planted(even=EVEN),
        "magnification": Planted(matrix=MAGNIFICATION),
    }
    return make(folder / name, kinds[name])


def refine(given: Set, output: Path, *words: object, status: int = 0) -> dict[str, Any]:
    """What ``ctf_refine.json`` says."""
    files = ("--particles", given.star, "--half1", given.halves[0], "--half2", given.halves[1], "--output", output)
    assert cli.main([str(word) for word in ("ctf-refine", *files, "--threads", 1, *words)]) == status
    found: dict[str, Any] = json.loads((output / "ctf_refine.json").read_text())
    return found


def errors(given: Set, output: Path) -> np.ndarray:
    """Errors of the refined `defocus_terms`, (n, 3)."""
    table = ParticleTable.read(output / "particles_ctf_refined.star")
    return np.stack(defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle), axis=1) - given.terms


# ------------------------------------------------------------------------------------------------------ closed forms
def test_zernike_coefficients_of_polynomials() -> None:
    rng = np.random.default_rng(1)
    for count in (2, 6, 12):
        assert odd_coefficients(odd_polynomial(given := rng.normal(size=count))) == pytest.approx(given)
    for count in (1, 4, 9):
        assert even_coefficients(even_polynomial(given := rng.normal(size=count))) == pytest.approx(given)


def test_coma_is_split_off() -> None:
    rest = odd_polynomial([0.5, -0.3, *TREFOIL[:1], 0, 0, TREFOIL[1]])
    tilt, left = split_coma(rest + odd_polynomial((), TILT, CS, LAMBDA), CS, LAMBDA)
    assert tilt == pytest.approx(TILT)
    assert left == pytest.approx(rest, abs=1e-9)
    assert split_coma(rest, 0, LAMBDA)[0] == (0, 0)


def test_defocus_terms_and_back() -> None:
    u, v, angle = np.array([12000.0, 9000]), np.array([11000.0, 8700]), np.array([30.0, 170])
    found = defocus_of_terms(*defocus_terms(u, v, angle))
    for value, wanted in zip(found, (u, v, angle), strict=True):
        assert value == pytest.approx(wanted)


# ------------------------------------------------------------------------------------------------ finite differences
@pytest.fixture(scope="module")
def observer(folder: Path) -> Observer:
    """Of the set of wrong defoci, with gradients."""
    given = planted(folder, "defocus")
    table = ParticleTable.read(given.star)
    maps = read_map(given.halves[0]).data, read_map(given.halves[1]).data
    references = References.of(ops("cpu"), maps, sphere(BOX, 20), np.ones(BOX), 17, with_moments=True)
    return measured(Observer.of(ops("cpu"), table, references, np.ones(len(table))), given.halves)


def test_rings_are_the_likelihood_of_the_pixels(observer: Observer) -> None:
    """Of shifted defoci, up to a constant; and both derivatives by finite differences."""
    rows, rings = np.arange(8), Rings.of(observer.disc, BOX * PIXEL_SIZE)
    seen = observer.observe(rows)
    product, power = seen.products()
    sine, cosine = np.sin(seen.phase.astype(np.float64)), np.cos(seen.phase.astype(np.float64))
    a, b = product.real, power
    parts = (a * sine, a * cosine, b * np.cos(2 * seen.phase), b * np.sin(2 * seen.phase))
    terms = [rings.sums(ops("cpu"), part) for part in parts]
    profile = Profile(np.stack(terms), np.pi * LAMBDA * rings.square, 1e-8, np.zeros(len(rows)))
    changes = np.linspace(-900, 900, 7)
    found = profile.on_grid(changes) + 0.5e-8 * changes**2
    square = monomials(*observer.frequency, 4)[1] + monomials(*observer.frequency, 4)[3]
    for place, change in enumerate(changes):
        sine = np.sin(seen.phase + np.pi * LAMBDA * change * square)
        direct = (a * sine - b * sine**2 / 2).sum(axis=1) + (b / 4).sum(axis=1)
        assert found[:, place] == pytest.approx(direct, abs=2e-3)
    at, step = np.linspace(-400, 300, len(rows)), 0.5
    low, middle, high = (profile.at(at + shift) for shift in (-step, 0, step))
    assert middle[1] == pytest.approx((high[0] - low[0]) / (2 * step), rel=1e-4, abs=1e-6)
    assert middle[2] == pytest.approx((high[1] - low[1]) / (2 * step), rel=1e-3, abs=1e-8)
    change, gain, curvature = best_change(profile, 2000)
    assert (gain >= 0).all() and (curvature > 0).all()
    fine = np.arange(-2000, 2001, 5.0)
    assert change == pytest.approx(fine[np.argmax(profile.on_grid(fine), axis=1)], abs=5)


def test_slices_of_moments_are_the_gradient(observer: Observer) -> None:
    """Against slices that are turned by half a thousandth of a radian: as far as trilinear slices are smooth."""
    rows = np.arange(6)
    rotations = observer.rotations(rows)
    k = np.stack([observer.disc.kx, observer.disc.ky])
    moments = [observer.slices_of((first, second), rows, rotations)
               for first, second in zip(*observer.references.moments, strict=True)]  # fmt: skip
    slope = [sum(rotations[:, a, c, None] * moment for c, moment in enumerate(moments)) * (-2j * np.pi / BOX)
             for a in (0, 1)]  # fmt: skip
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        change, step = np.zeros((2, 2)), 0.02
        change[a, b] = step
        ends = []
        for sign in (-1, 1):
            turned = rotations.copy()
            turned[:, :2] = (np.eye(2) + sign * change).T @ rotations[:, :2]
            ends.append(observer.slices_of(observer.references.volumes, rows, turned))
        inner = observer.disc.shell < 15  # those at M k must stay inside the volume
        numeric, exact = (ends[1] - ends[0])[:, inner] / (2 * step), (slope[a] * k[b])[:, inner]
        correlation = np.vdot(numeric, exact) / (np.linalg.norm(numeric) * np.linalg.norm(exact))
        assert correlation.real > 0.99
        assert np.vdot(numeric, exact).real / np.vdot(numeric, numeric).real == pytest.approx(1, abs=0.03)


def test_tilts_of_noise() -> None:
    """Without a tilt its error is what is printed, and hardly a group is given one, wherever its images lie."""
    box, rng = 20, np.random.default_rng(3)
    disc, count = make_disc(box, 9), 160
    length, x, y = 2.0 * box, disc.kx / (2.0 * box), disc.ky / (2.0 * box)
    weight = np.broadcast_to(40.0 + 60.0 * (disc.shell % 3), (count, len(disc)))
    noise = np.sqrt(weight) * (rng.standard_normal((2, count, len(disc))) * [[[1]], [[1j]]]).sum(axis=0)
    shifted = np.exp(2j * np.pi * (0.3 * x - 0.2 * y))  # A, far beyond noise
    sums = PhaseSums(weight * shifted + noise, weight, np.zeros((count, 2, 1)), np.zeros((count, 3, 1)))
    fits = [fit_odd(sums, group, disc, length, coma=True, trefoil=False) for group in range(count)]
    tilts = np.array([split_coma(fit.polynomial, CS, LAMBDA)[0] for fit in fits])
    columns = np.stack([split_coma(one, CS, LAMBDA)[0] for one in np.eye(6)], axis=1)
    errors = np.sqrt([np.diagonal(columns @ fit.covariance @ columns.T) for fit in fits])
    assert np.mean((tilts / errors) ** 2) == pytest.approx(1, abs=0.2)
    gains = 2 * np.array([fit.gain for fit in fits])
    assert gains.mean() == pytest.approx(2, abs=0.4)  # of a chi-square of two numbers
    assert 0 < np.mean(gains > chi2.ppf(0.9, 2)) < 0.15
    assert np.mean([fit.is_for(False) for fit in fits]) < 0.01 < np.mean([fit.is_for(True) for fit in fits])


def test_shells_of_noise_say_nothing(folder: Path, observer: Observer) -> None:
    """Maps that are noise beyond shell 11 of 17, with a filter that takes them for signal."""
    given = planted(folder, "none")
    rng, shells, maps = np.random.default_rng(5), shell_indices(BOX), []
    for path in given.halves:
        signal = forward(read_map(path).data)
        noise = forward(rng.standard_normal((BOX,) * 3, dtype=np.float32))
        noise *= np.sqrt((np.abs(signal) ** 2).mean() / (np.abs(noise) ** 2).mean())
        maps.append(backward(np.where(shells > 11, noise, signal)).astype(np.float32))
    table = ParticleTable.read(given.star)
    references = References.of(ops("cpu"), (maps[0], maps[1]), sphere(BOX, 20), np.ones(BOX), 17, with_moments=False)
    noisy = measured(Observer.of(ops("cpu"), table, references, np.ones(len(table))), given.halves)
    assert (observer.amplitude[:, 1:] > 0.75).all()  # the defoci of its table are wrong
    assert (noisy.amplitude[:, 1:11] > 0.9).all() and (noisy.amplitude[:, 13:] < 0.1).all()


def test_halves_are_never_mixed(observer: Observer) -> None:
    """Another map of half 2 changes nothing of what particles of half 1 become."""
    rng = np.random.default_rng(2)
    first, second = observer.references.volumes
    noise = (rng.standard_normal(second.shape) + 1j * rng.standard_normal(second.shape)).astype(np.complex64)
    other = replace(observer, references=replace(observer.references, volumes=(first, noise * np.abs(second).mean())))
    rings, rows = Rings.of(observer.disc, BOX * PIXEL_SIZE), np.arange(50)
    table = observer.table
    terms = np.stack(defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle), axis=1)
    found = [refine_defocus(one, terms, rings, rows, defocus=True, astigmatism=None, limit=2000, width=2000).terms
             for one in (observer, other)]  # fmt: skip
    half1 = table.halves[rows] == 1
    assert np.array_equal(found[0][half1], found[1][half1])
    assert np.abs(found[0][~half1] - found[1][~half1]).max() > 300


# ----------------------------------------------------------------------------------------------------- planted errors
def test_defocus_and_astigmatism_are_found(folder: Path, tmp_path: Path) -> None:
    given = planted(folder, "defocus")
    told = refine(given, tmp_path, "--defocus", "--astigmatism", "micrograph")["defocus"]
    left = errors(given, tmp_path)
    assert np.sqrt((left[:, 0] ** 2).mean()) < 1.3 * told["median_error"] < 60
    assert np.abs(left[:, 1:]).max() < 60  # of 200 and 150
    assert told["at_bound"] == 0 and told["gain"] > 3000
    wrong = ParticleTable.read(given.star)
    before = (wrong.defocus_u + wrong.defocus_v) / 2 - given.terms[:, 0]
    assert np.polyfit(before, left[:, 0] - before, 1)[0] == pytest.approx(-1, abs=0.1)
    refine(given, tmp_path, "--astigmatism", "particle", "--rounds", 1)
    assert np.sqrt((errors(given, tmp_path)[:, 0] ** 2).mean()) < 60


def test_bound_of_the_defocus(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = planted(folder, "defocus")
    told = refine(given, tmp_path, "--defocus", "--defocus-range", 100, "--rounds", 1)["defocus"]
    changed, before = (ParticleTable.read(path) for path in (tmp_path / "particles_ctf_refined.star", given.star))
    assert np.abs(changed.defocus_u - before.defocus_u).max() < 100.01
    assert told["at_bound"] > 100
    assert f"{told['at_bound']} of 200 at the bound of 100 A" in capsys.readouterr().out


def test_beam_tilt_and_trefoil_are_found(folder: Path, tmp_path: Path) -> None:
    group = refine(planted(folder, "odd"), tmp_path, "--beam-tilt", "--trefoil", "--defocus")["optics_groups"][0]
    tilt, error = np.array(group["beam_tilt"]["refined"]), np.array(group["beam_tilt"]["error"])
    assert (np.abs(tilt - TILT) < 3 * error).all() and (error < 0.05).all()
    found = group["odd_zernike"]["refined"]
    assert (found[2], found[5]) == (pytest.approx(TREFOIL[0], abs=25), pytest.approx(TREFOIL[1], abs=25))
    assert found[3] == pytest.approx(0, abs=1e-9) and found[4] == pytest.approx(0, abs=1e-9)  # coma is the tilt's
    table = StarFile.read(tmp_path / "particles_ctf_refined.star").table("optics")
    assert table.floats("rlnBeamTiltX")[0] == pytest.approx(tilt[0], abs=1e-6)
    assert ParticleTable.read(tmp_path / "particles_ctf_refined.star").optics[0].odd == pytest.approx(found)


def test_even_aberrations_are_found(folder: Path, tmp_path: Path) -> None:
    """As phases: the coefficients belong to polynomials that are nearly alike in the band."""
    given = planted(folder, "even")
    refine(given, tmp_path, "--even-aberrations")
    found = ParticleTable.read(tmp_path / "particles_ctf_refined.star").optics[0].even_polynomial()
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(-0.2, 0.2, 41), np.linspace(-0.2, 0.2, 41)))
    inside = np.hypot(x, y) < 0.2
    left, truth = (values @ monomials(x, y, 9)[:, inside] for values in (found - EVEN, EVEN))
    assert np.sqrt((left**2).mean()) < 0.1 < 0.25 * np.sqrt((truth**2).mean())


def test_magnification_is_found(folder: Path, tmp_path: Path) -> None:
    given = planted(folder, "magnification")
    group = refine(given, tmp_path, "--magnification")["optics_groups"][0]["magnification"]
    left = np.array(group["refined"]).reshape(2, 2) - MAGNIFICATION
    assert np.abs(left).max() < 0.001  # of 0.006, the isotropic part too
    assert group["anisotropy_percent"] == pytest.approx(1.17, rel=0.1)
    assert np.abs(errors(given, tmp_path).mean(axis=0)).max() < 40  # astigmatism in the new coordinates


def test_nothing_planted_nothing_found(folder: Path, tmp_path: Path) -> None:
    given = planted(folder, "none")
    told = refine(given, tmp_path, "--defocus", "--beam-tilt", "--trefoil", "--even-aberrations", "--magnification")
    assert told["defocus"]["rms_change"] < 1.4 * told["defocus"]["median_error"]
    group = told["optics_groups"][0]
    tilt, error = (np.array(group["beam_tilt"][name]) for name in ("refined", "error"))
    assert (tilt == 0).all() and (error < 0.05).all()
    assert group["magnification"]["anisotropy_percent"] < 1e-6
    assert group["odd_zernike"]["gain"] == 0 and group["even_zernike"]["gain"] == 0


def reconstructed(given: Set) -> Set:
    """The set with half maps made of its own particles, as its STAR file has them."""
    folder = given.star.parent
    words = ("reconstruct", "--particles", given.star, "--halves", "--output", folder / "map.mrc", "--threads", 1)
    assert cli.main([str(word) for word in words]) == 0
    return replace(given, halves=(folder / "map_half1.mrc", folder / "map_half2.mrc"))


def test_particles_are_taken_out_of_their_own_map(tmp_path: Path) -> None:
    """Half maps of few noisy particles hold each to the defocus that it had; without its own part they do not."""
    given = reconstructed(make(tmp_path / "set", Planted(defocus=500), count=300, noise=2.0, seed=4))
    told = refine(given, tmp_path / "out", "--defocus", "--particle-diameter", 40, "--rounds", 1)
    assert told["own_part"] == pytest.approx(1, abs=0.2)
    wrong = ParticleTable.read(given.star)
    before = (wrong.defocus_u + wrong.defocus_v) / 2 - given.terms[:, 0]
    taken = errors(given, tmp_path / "out")[:, 0] - before
    assert np.polyfit(before, taken, 1)[0] == pytest.approx(-1, abs=0.15)


def test_grey_scale_of_the_maps_does_not_matter(tmp_path: Path) -> None:
    given = reconstructed(make(tmp_path / "set", Planted(defocus=500), count=300, noise=2.0, seed=4))
    scaled = tmp_path / "half1.mrc", tmp_path / "half2.mrc"
    for path, other in zip(scaled, given.halves, strict=True):
        write_map(path, 0.2 * read_map(other).data, PIXEL_SIZE)
    found = []
    for name, one in (("same", given), ("scaled", replace(given, halves=scaled))):
        refine(one, tmp_path / name, "--defocus", "--particle-diameter", 40)
        found.append(errors(one, tmp_path / name)[:, 0])
    assert np.sqrt(np.mean((found[0] - found[1]) ** 2)) < 0.2 * found[0].std()


def test_own_part_does_not_hold_the_magnification(tmp_path: Path) -> None:
    given = reconstructed(make(tmp_path / "set", Planted(matrix=MAGNIFICATION), count=300, noise=2.0, seed=4))
    told = refine(given, tmp_path / "out", "--magnification", "--particle-diameter", 40)
    group = told["optics_groups"][0]["magnification"]
    assert told["own_part"] == pytest.approx(1, abs=0.3)
    assert group["anisotropy_percent"] == pytest.approx(1.17, rel=0.25)


# ------------------------------------------------------------------------------------------------------------- files
def test_everything_else_is_kept(folder: Path, tmp_path: Path) -> None:
    given = planted(folder, "none")
    refine(given, tmp_path, "--rounds", 1)
    before, after = (StarFile.read(path) for path in (given.star, tmp_path / "particles_ctf_refined.star"))
    kept = set(before.table("particles").columns) - {"rlnDefocusU", "rlnDefocusV", "rlnImageName"}
    for column in kept - {"rlnDefocusAngle", "rlnOriginXAngst", "rlnOriginYAngst"}:
        assert after.table("particles").strings(column) == before.table("particles").strings(column)
    for column in before.table("optics").columns:
        assert after.table("optics").strings(column) == before.table("optics").strings(column)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"particles_ctf_refined.star", "ctf_refine.json", "ctf_refine.toml", "checksums.sha256",
                     "defocus_changes.png", "aberrations_optics1.png"}  # fmt: skip


def test_folder_of_a_run(folder: Path, tmp_path: Path) -> None:
    given = planted(folder, "none")
    run = tmp_path / "run"
    run.mkdir()
    ParticleTable.read(given.star).write(run / "run_data.star")
    for half, path in enumerate(given.halves, start=1):
        (run / f"run_half{half}_class001_unfil.mrc").symlink_to(path)
    words = ("ctf-refine", "--run", run, "--output", tmp_path / "out", "--beam-tilt", "--rounds", 1, "--threads", 1)
    assert cli.main([str(word) for word in words]) == 0
    assert "defocus" not in json.loads((tmp_path / "out" / "ctf_refine.json").read_text())


def test_groups_that_are_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too few particles; and images to which a CTF has been applied, with all that their particles have."""
    given = planted(folder, "odd")
    star = StarFile.read(given.star)
    columns = {name: star.table("optics").strings(name) for name in star.table("optics").columns}
    changed, table = StarFile.new(), star.table("particles")
    optics: dict[str, list[Any]] = {name: values * 3 for name, values in columns.items()}
    optics |= {"rlnOpticsGroup": [1, 2, 3], "rlnOpticsGroupName": ["most", "few", "flipped"],
               "rlnCtfDataArePhaseFlipped": [0, 0, 1]}  # fmt: skip
    changed.add_loop("optics", optics)
    groups = np.repeat([1, 2, 3], (150, 30, 20))
    changed.add_loop("particles", {name: table.strings(name) for name in table.columns} | {"rlnOpticsGroup": groups})
    path = given.star.with_name("groups.star")
    changed.write(path)
    told = refine(replace(given, star=path), tmp_path, "--defocus", "--beam-tilt")["optics_groups"]
    said = capsys.readouterr().err
    assert "1 optics groups of fewer than 100 particles keep their aberrations and magnification: few" in said
    assert "20 particles of phase-flipped or premultiplied optics groups are left as they are" in said
    assert [one["refined"] for one in told] == [True, False, False]
    assert told[0]["beam_tilt"]["refined"] != [0, 0] and told[1]["beam_tilt"]["refined"] == [0, 0]
    before, after = (ParticleTable.read(file) for file in (path, tmp_path / "particles_ctf_refined.star"))
    moved = after.defocus_u != before.defocus_u
    assert moved[:180].mean() > 0.9 and not moved[180:].any()


# ------------------------------------------------------------------------------------------------------- wrong inputs
def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a wrong command line says: one line, status 2."""
    assert cli.main(["ctf-refine", *(str(word) for word in words)]) == cli.WRONG_INPUT
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparsecv: error: ")]
    assert len(said) == 1
    return said[0].removeprefix("sparsecv: error: ")


def test_wrong_inputs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = planted(folder, "none")
    output = ("--output", tmp_path / "out")
    files = {"--particles": given.star, "--half1": given.halves[0], "--half2": given.halves[1]}

    def said(*words: object, **other: Path) -> str:
        changed = files | {f"--{name}": path for name, path in other.items()}
        return complaint(capsys, *(part for pair in changed.items() for part in pair), *output, *words)

    maps = [read_map(path).data for path in given.halves]
    for half, density in enumerate(maps, start=1):
        write_map(tmp_path / f"small{half}.mrc", density[2:-2, 2:-2, 2:-2], PIXEL_SIZE)
        write_map(tmp_path / f"black{half}.mrc", -density, PIXEL_SIZE)
    small = {f"half{half}": tmp_path / f"small{half}.mrc" for half in (1, 2)}
    assert "small1.mrc: box differs from that of the images (value 44); rule: 48 pixels" in said(**small)
    black = {f"half{half}": tmp_path / f"black{half}.mrc" for half in (1, 2)}
    assert "black1.mrc, scale of the map: the map of half set 1 does not fit its images at their poses" in said(**black)
    table = StarFile.read(given.star)
    for column in ("rlnAngleRot", "rlnRandomSubset"):
        star = table.copy()
        star.table("particles").drop(column)
        star.write(given.star.with_name(f"no_{column}.star"))
    assert "a CTF refinement needs orientations" in said(particles=given.star.with_name("no_rlnAngleRot.star"))
    assert "the particles have no half sets" in said(particles=given.star.with_name("no_rlnRandomSubset.star"))
    rng = np.random.default_rng(1)
    for half in (1, 2):
        write_map(tmp_path / f"noise{half}.mrc", rng.standard_normal((BOX,) * 3, dtype=np.float32), PIXEL_SIZE)
    noise = {f"half{half}": tmp_path / f"noise{half}.mrc" for half in (1, 2)}
    assert "the half maps agree on too little" in said(**noise)
    assert "--half1, --half2 missing" in complaint(capsys, "--particles", given.star, *output)
    assert "--output missing" in complaint(capsys, "--particles", given.star)
    assert "run_data.star in it" in complaint(capsys, "--run", tmp_path, *output)
    assert "has no meaning here" in said("--run", tmp_path)
    assert "defocus_range: out of range" in said("--defocus-range", 0)
    assert not (tmp_path / "out").exists()
