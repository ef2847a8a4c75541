# SPDX-License-Identifier: GPL-3.0-or-later
"""A project of three unlike optics groups is refined and reconstructed as the same images of one clean group are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from unlike_groups import BOX, GROUPS, PIXEL_SIZE, make

from sparsecv import cli
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.fourier import crop_or_pad, resample
from sparsecv.engine.physics.geometry import angular_distance
from sparsecv.engine.validate.fsc import fsc

COUNT, ITERATIONS = 900, 4
KINDS = ("clean", "unlike", "naive")

pytestmark = [pytest.mark.usefixtures("threads_as_before"), pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, and refinements of it around given poses in folders of their names."""
    folder = tmp_path_factory.mktemp("unlike")
    make(folder, COUNT)
    for name in KINDS:
        words = ("refine", "--particles", folder / f"{name}.star", "--reference", folder / "reference.mrc", "--output",
                 folder / name, "--local", "--initial-lowpass", 20, "--iterations", ITERATIONS, "--threads", 1)
        assert cli.main([str(word) for word in words]) == 0
    return folder


def pose_errors(project: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Errors of orientations, degrees, and of shifts, A, of every particle."""
    files = project / name / "run_data.star", project / "clean_truth.star"
    found, truth = (ParticleTable.read(path) for path in files)
    moved = np.linalg.norm(found.shifts - truth.shifts, axis=1)
    return angular_distance(found.rotations, truth.rotations), moved


def test_unlike_groups_refine_as_well_as_one_clean_group(project: Path) -> None:
    """Medians over all within 5 %, in each group within what 300 particles tell; and not where nothing is said."""
    turned, moved = (dict(zip(KINDS, errors, strict=True)) for errors in
                     zip(*(pose_errors(project, name) for name in KINDS), strict=True))  # fmt: skip
    for errors in (turned, moved):
        clean = np.median(errors["clean"])
        assert np.median(errors["unlike"]) < 1.05 * clean
        assert np.median(errors["naive"]) > 1.4 * clean
    for group in range(len(GROUPS)):
        rows = slice(group, None, len(GROUPS))
        clean = np.median(turned["clean"][rows])
        assert np.median(turned["unlike"][rows]) < 1.15 * clean
        assert np.median(turned["naive"][rows]) > 1.25 * clean


def test_results_keep_the_optics_and_the_images(project: Path) -> None:
    given, found = (StarFile.read(path) for path in (project / "unlike.star", project / "unlike" / "run_data.star"))
    for column in given.table("optics").columns:
        assert found.table("optics").strings(column) == given.table("optics").strings(column)
    names = [name.rpartition("/")[2] for name in found.table("particles").strings("rlnImageName")]
    assert [name.split("@")[-1] for name in given.table("particles").strings("rlnImageName")] == [
        name.split("@")[-1] for name in names
    ]
    assert read_map(project / "unlike" / "run_class001.mrc").pixel_size == pytest.approx(PIXEL_SIZE)


def curve_with_truth(project: Path, density: np.ndarray) -> np.ndarray:
    truth = read_map(project / "reference.mrc")
    return fsc(density, resample(truth.data, truth.pixel_size, BOX, PIXEL_SIZE))[1 : BOX // 2 - 1]


def test_reconstruction_from_true_poses(project: Path) -> None:
    curves = {}
    for name in KINDS:
        words = ("reconstruct", "--particles", project / f"{name}_truth.star", "--output", project / f"{name}.mrc")
        assert cli.main([str(word) for word in (*words, "--threads", 1)]) == 0
        curves[name] = curve_with_truth(project, read_map(project / f"{name}.mrc").data)
    assert np.abs(curves["unlike"] - curves["clean"]).max() < 0.02
    assert np.min(curves["naive"] - curves["clean"]) < -0.2


@pytest.mark.relion
def test_relion_reconstructs_the_same_map_from_our_result(project: Path) -> None:
    """Its own reading of optics table, poses and origins: relion_reconstruct takes the box of the first group."""
    command = f"relion_reconstruct --i unlike/run_data.star --o relion.mrc --ctf --angpix {PIXEL_SIZE}"
    subprocess.run(command.split(), cwd=project, check=True, capture_output=True)
    words = ("reconstruct", "--particles", project / "unlike" / "run_data.star", "--output", project / "ours.mrc")
    assert cli.main([str(word) for word in (*words, "--threads", 1)]) == 0
    theirs, ours = crop_or_pad(read_map(project / "relion.mrc").data, BOX), read_map(project / "ours.mrc").data
    assert fsc(theirs, ours)[1 : BOX // 2 - 2].min() > 0.95
    assert np.mean(curve_with_truth(project, ours) - curve_with_truth(project, theirs)) > -0.01
