# SPDX-License-Identifier: GPL-3.0-or-later
"""CTF refinement inside of a refinement: closed forms, planted errors, ranks, devices, and runs that go on."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import opened
from mpi_launcher import AS_ROOT, LAUNCHER, needs_mpi
from planted_optics import CS, VOLTAGE, Planted, Set, make

from sparsecv import cli
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.aberrations import odd_polynomial
from sparsecv.engine.physics.ctf import defocus_terms, wavelength
from sparsecv.engine.ranks import ALONE, Comm
from sparsecv.engine.refine.ctf_refine.inside import InnerCtf, posterior_mean, prior_width
from sparsecv.engine.refine.loop import Refinement
from sparsecv.engine.refine.prepare import prepare
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import ops

LAMBDA = float(wavelength(np.array(VOLTAGE)))
TILT, TREFOIL = (0.3, -0.2), (70.0, -90.0)  # mrad; radians A^3 of Z_3^-3 and Z_3^3
ASKED = {"refine_defocus": True, "refine_astigmatism": True, "refine_aberrations": True}
FEW = 100  # particles of whole runs
WORDS = tuple(f"--{name.replace('_', '-')}" for name in ASKED)

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sets are made."""
    return tmp_path_factory.mktemp("inside")


@cache
def planted(folder: Path, count: int = 200) -> Set:
    """A set with wrong defoci, astigmatism, tilt and trefoil, made once."""
    odd = odd_polynomial([0, 0, TREFOIL[0], 0, 0, TREFOIL[1]], TILT, CS, LAMBDA)
    return make(folder / f"set{count}", Planted(defocus=500, astigmatism=(200, -150), odd=odd), count)


def settings_of(given: Set, output: Path, **more: Any) -> RefineSettings:
    return RefineSettings(particles=given.star, reference=given.halves[0], output=output, local=True, threads=1,
                          local_sigma=2.0, initial_lowpass=8.0, particle_diameter=70.0, **more)  # fmt: skip


def updated(given: Set, kernels: Any, **asked: bool) -> tuple[Refinement, dict[str, Any]]:
    """A refinement before its first iteration, once its optics have been updated, and what was told."""
    refinement = prepare(settings_of(given, given.star.parent, **asked), kernels, lambda text: None,
                         Progress(io.StringIO()))  # fmt: skip
    ctf, state = refinement.ctf, refinement.state
    state.stage = "fine"
    assert ctf is not None
    for half in state.halves:
        half.noise[:] = 0.5  # white noise of variance 1
    ctf.bring(refinement.particles, state)
    maps = read_map(given.halves[0]).data, read_map(given.halves[1]).data
    told = ctf.update(kernels, refinement.particles, state, maps, fsc(*maps), ALONE)
    ctf.bring(refinement.particles, state)
    return refinement, told


def terms_of(table: ParticleTable) -> np.ndarray:
    """`defocus_terms` of a table, (n, 3)."""
    return np.stack(defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle), axis=1)


# ------------------------------------------------------------------------------------------------------ closed forms
@pytest.mark.parametrize(("width", "bounds"), [(300.0, (250, 350)), (0.0, (0, 60))])
def test_width_of_the_prior_and_mean_of_the_posterior(width: float, bounds: tuple[float, float]) -> None:
    """Of Gaussian likelihoods, of which both are known."""
    rng = np.random.default_rng(1)
    error = rng.uniform(80, 300, 600)
    true = width * rng.standard_normal(600)
    found = true + error * rng.standard_normal(600)
    changes = np.linspace(-2000, 2000, 57)
    likelihood = -((changes - found[:, None]) ** 2) / (2 * error[:, None] ** 2)
    measured = prior_width(likelihood, changes)
    assert bounds[0] <= measured <= bounds[1]
    shrunk = posterior_mean(likelihood, changes, 200.0)
    assert shrunk == pytest.approx(found * 200.0**2 / (200.0**2 + error**2), abs=1.0)
    assert not posterior_mean(likelihood, changes, 0.0).any()
    left = posterior_mean(likelihood, changes, measured) - true
    assert np.std(left) < (0.85 * np.std(found - true) if width else 12)


# ----------------------------------------------------------------------------------------------------- planted errors
def test_planted_errors_are_found(folder: Path) -> None:
    given = planted(folder)
    refinement, told = updated(given, ops("cpu"), **ASKED)
    table = refinement.particles.table
    before, after = terms_of(ParticleTable.read(given.star)) - given.terms, terms_of(table) - given.terms
    assert np.sqrt((after[:, 0] ** 2).mean()) < 60 < 0.25 * np.sqrt((before[:, 0] ** 2).mean())
    assert np.abs(after[:, 1:]).max() < 60  # of 200 and 150
    assert 200 < min(told["width_A"]) and max(told["width_A"]) < 400  # 289 A were planted
    assert np.array(table.optics[0].beam_tilt) == pytest.approx(np.array(TILT), abs=0.06)
    assert np.array(table.optics[0].odd)[[2, 5]] == pytest.approx(np.array(TREFOIL), abs=25)
    assert table.optics[0].odd[:2] == pytest.approx((0, 0), abs=1e-9)  # a shift of the images is the poses'
    columns, optics = refinement.ctf.columns(table)  # type: ignore[union-attr]
    assert columns["rlnDefocusU"] is table.defocus_u and optics["rlnBeamTiltX"] == [table.optics[0].beam_tilt[0]]


def test_nothing_is_changed_where_nothing_is_wrong(folder: Path) -> None:
    refinement, told = updated(make(folder / "none", Planted()), ops("cpu"), **ASKED)
    assert told["changed_A"] < 15  # the noise of one particle leaves 40 A
    assert refinement.particles.table.optics[0].beam_tilt == (0, 0)


def test_a_gpu_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecv.engine.refine.ctf_refine.inside.LEAST_PARTICLES", 1)
    odd = odd_polynomial((), (1.0, -0.5), CS, LAMBDA)
    given = make(folder / "few", Planted(defocus=500, astigmatism=(200, -150), odd=odd), count=16)
    expected, _ = updated(given, ops("cpu"), **ASKED)
    with opened("cuda-host"):
        found, _ = updated(given, ops("gpu"), **ASKED)
    difference = found.state.particles.defocus_change - expected.state.particles.defocus_change
    assert np.abs(difference).max() < 0.5  # A
    scale = np.abs(expected.state.odd_change).max()
    assert scale > 0
    np.testing.assert_allclose(found.state.odd_change, expected.state.odd_change, atol=1e-3 * scale)


# ------------------------------------------------------------------------------------------------------------- ranks
class Rank(Comm):
    """One of several, of which only the number is asked."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size  # type: ignore[misc]


@pytest.mark.parametrize("astigmatism", [True, False])
def test_each_particle_belongs_to_one_rank(folder: Path, astigmatism: bool) -> None:
    given = planted(folder)
    refinement = prepare(settings_of(given, folder, refine_defocus=True, refine_astigmatism=astigmatism), ops("cpu"),
                         lambda text: None, Progress(io.StringIO()))  # fmt: skip
    ctf = refinement.ctf
    assert isinstance(ctf, InnerCtf)
    refinement.state.particles.is_rejected[7] = True
    parts = [ctf._rows(refinement.state, Rank(rank, 3)) for rank in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == [row for row in range(200) if row != 7]
    if astigmatism:
        micrographs = [set(ctf.given.micrograph_index[rows].tolist()) for rows in parts]
        assert sum(map(len, micrographs)) == 8 and all(micrographs)


def run(given: Set, output: Path, *words: object) -> list[str]:
    line = ("refine", "--particles", given.star, "--reference", given.halves[0], "--output", output, "--local",
            "--local-sigma", 2, "--initial-lowpass", 8, "--particle-diameter", 70, "--threads", 1, *words)  # fmt: skip
    return [str(word) for word in line]


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """Folder of a whole refinement of everything."""
    assert cli.main(run(planted(folder, FEW), folder / "run", *WORDS, "--iterations", 7)) == 0
    return folder / "run"


def assert_same(first: Path, second: Path) -> None:
    for name in ("run_data.star", "run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
        if name.endswith("mrc"):
            np.testing.assert_array_equal(read_map(first / name).data, read_map(second / name).data)
        else:  # the first line has the time
            assert (first / name).read_text().splitlines()[1:] == (second / name).read_text().splitlines()[1:]


def test_a_refinement_finds_them(folder: Path, finished: Path) -> None:
    given = planted(folder, FEW)
    history = json.loads((finished / "status.json").read_text())["history"]
    assert sum("ctf" in entry for entry in history) >= 2
    table = ParticleTable.read(finished / "run_data.star", given.star.parent)
    left = (terms_of(table) - given.terms)[:, 0]
    assert np.sqrt((left**2).mean()) < 90  # of 289
    assert np.array(table.optics[0].beam_tilt) == pytest.approx(np.array(TILT), abs=0.2)  # 0.05 of noise
    assert "Changes of defocus" in (finished / "report.html").read_text()


def test_it_goes_on_as_if_it_had_not_been_stopped(folder: Path, finished: Path, tmp_path: Path) -> None:
    """From the iteration before its last, whose checkpoint has the optics."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    last = sorted(out.glob("run_it*_checkpoint.npz"))[-1]
    last.unlink()
    assert cli.main(run(planted(folder, FEW), out, *WORDS, "--iterations", 7, "--continue")) == 0
    assert_same(finished, out)


@needs_mpi
def test_ranks_find_the_same(folder: Path, finished: Path, tmp_path: Path) -> None:
    assert LAUNCHER is not None
    line = run(planted(folder, FEW), tmp_path / "many", *WORDS, "--iterations", 7)
    command = [LAUNCHER, "-n", "2", sys.executable, "-m", "sparsecv.cli", *line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | AS_ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(finished, tmp_path / "many")


def test_what_cannot_be_asked_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--intact-first-peak",), ("--symmetry-expanded",)):
        assert cli.main(run(planted(folder, FEW), folder / "no", "--refine-defocus", *words)) == cli.WRONG_INPUT
        assert "refine_defocus: has no meaning here" in capsys.readouterr().err
