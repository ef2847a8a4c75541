# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks' evaluation against a truth in closed form: Gaussian blobs, whose images and moved maps are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.symmetry import symmetry_matrices

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BOX, PIXEL_SIZE, WIDTH = 32, 2.0, 3.2  # WIDTH: of a blob, A; narrow enough that every shell has signal
SHIFT = np.array([3.1, -4.3, 2.2])
TURN = Rotation.from_rotvec([0.05, -0.04, 0.07]).as_matrix()


@pytest.fixture(scope="module")
def evaluation():
    """The module benchmarks/evaluate.py."""
    pytest.importorskip("finufft")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import evaluate
    finally:
        sys.path.remove(str(BENCHMARKS))
    return evaluate


def blobs(centres: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Map (z, y, x) of Gaussian blobs at centres (n, 3), A from the box centre, with different weights."""
    axis = (np.arange(BOX) - BOX // 2) * PIXEL_SIZE
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    density = np.zeros((BOX,) * 3)
    for weight, (cx, cy, cz) in enumerate(centres, start=1):
        density += sign * weight * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * WIDTH**2))
    return density


def write_poses(path: Path, matrices: np.ndarray, origins: np.ndarray, order: np.ndarray) -> None:
    rot, tilt, psi = Rotation.from_matrix(matrices.transpose(0, 2, 1)).as_euler("ZYZ", degrees=True).T
    star = StarFile.new()
    columns = {"AngleRot": rot, "AngleTilt": tilt, "AnglePsi": psi, "OriginXAngst": origins[:, 0],
               "OriginYAngst": origins[:, 1]}
    table = {f"rln{name}": values[order] for name, values in columns.items()}
    table["rlnImageName"] = [f"{k + 1:06d}@images.mrcs" for k in order]
    table["rlnRandomSubset"] = 1 + order % 2
    star.add_loop("particles", table)
    star.write(path)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Truth, and a refinement whose map is turned by TURN, then moved by SHIFT.

    The origins of the refinement are not from a formula: they are where each image must be moved so that the blobs of
    the moved map are seen where the blobs of the truth are.
    """
    folder = tmp_path_factory.mktemp("truth")
    rng = np.random.default_rng(5)
    centres = rng.uniform(-11, 11, (6, 3))
    matrices = Rotation.random(60, random_state=1).as_matrix()
    origins = rng.uniform(-4, 4, (60, 2))
    order = rng.permutation(60)
    write_poses(folder / "truth.star", matrices, origins, np.arange(60))
    write_map(folder / "truth.mrc", blobs(centres), PIXEL_SIZE)
    write_map(folder / "mask_protein.mrc", np.clip(3 * blobs(centres), 0, 1), PIXEL_SIZE)
    moved = centres @ TURN.T + SHIFT
    found = matrices @ TURN.T
    seen = np.einsum("nij,bj->nbi", matrices, centres)[..., :2] - origins[:, None]  # blobs in the images, A
    offsets = np.einsum("nij,bj->nbi", found, moved)[..., :2] - seen
    assert np.allclose(offsets, offsets[:, :1])  # one origin moves all blobs of an image into place
    write_poses(folder / "run_data.star", found, offsets[:, 0], order)
    for number in (1, 2):
        write_map(folder / f"half{number}.mrc", blobs(moved), PIXEL_SIZE)
    return folder, centres


def paths(folder: Path) -> list[Path]:
    return [folder, folder / "run_data.star", folder / "half1.mrc", folder / "half2.mrc"]


def test_turned_and_moved_map_is_recognised(evaluation, case):
    found = evaluation.evaluate(*paths(case[0]))
    assert found.particles == 60
    assert found.angle_deg < 1e-3
    assert found.shift_A < 1e-3
    assert found.frame_angle_deg == pytest.approx(np.rad2deg(np.linalg.norm([0.05, -0.04, 0.07])), abs=1e-3)
    assert found.frame_shift_A == pytest.approx(np.linalg.norm(SHIFT), abs=1e-3)
    for curve in found.curves.values():
        assert min(curve[: BOX // 2]) > 0.99
    assert set(found.fsc05.values()) == {2 * PIXEL_SIZE}


def test_moving_follows_the_closed_form(evaluation, case):
    centres = case[1]
    frame = evaluation.Frame(TURN, SHIFT)
    moved = evaluation.into_frame(blobs(centres), frame, PIXEL_SIZE)
    assert np.allclose(moved, blobs(centres @ TURN.T + SHIFT), atol=2e-3)


def test_the_opposite_displacement_is_wrong(evaluation, case):
    frame = evaluation.Frame(TURN, -SHIFT)
    moved = evaluation.into_frame(blobs(case[1]), frame, PIXEL_SIZE)
    expected = blobs(case[1] @ TURN.T + SHIFT)
    assert evaluation.fsc(moved, expected)[4:].max() < 0.9


def test_halves_have_their_own_frames(evaluation, case, tmp_path):
    folder, centres = case
    poses, numbers, halves = evaluation.read_poses(folder / "run_data.star")
    extra = np.array([2.0, 1.0, -3.0])  # half 2 is moved on by this
    origins = poses.origins + np.where(halves == 2, 1, 0)[:, None] * (poses.matrices @ extra)[:, :2]
    inverse = np.argsort(numbers)
    write_poses(tmp_path / "run_data.star", poses.matrices[inverse], origins[inverse], np.arange(60))
    write_map(tmp_path / "half2.mrc", blobs(centres @ TURN.T + SHIFT + extra), PIXEL_SIZE)
    found = evaluation.evaluate(folder, tmp_path / "run_data.star", folder / "half1.mrc", tmp_path / "half2.mrc")
    assert found.fsc05["half1 unmasked"] == found.fsc05["half2 unmasked"] == 2 * PIXEL_SIZE
    assert found.fsc05["average unmasked"] > 2 * PIXEL_SIZE


def test_wrong_poses_do_not_move_the_frame(evaluation, case, tmp_path):
    folder, _ = case
    poses, numbers, _ = evaluation.read_poses(folder / "run_data.star")
    matrices = poses.matrices.copy()
    matrices[:9] = Rotation.random(9, random_state=3).as_matrix()
    inverse = np.argsort(numbers)
    write_poses(tmp_path / "run_data.star", matrices[inverse], poses.origins[inverse], np.arange(60))
    found = evaluation.evaluate(folder, tmp_path / "run_data.star", *paths(folder)[2:])
    assert found.frame_shift_A == pytest.approx(np.linalg.norm(SHIFT), abs=0.05)
    assert found.angle_deg < 0.05
    assert 0.05 < found.lost <= 0.15


def test_symmetry_mates_count_as_right(evaluation):
    group = symmetry_matrices("D7")
    true = Rotation.random(20, random_state=2).as_matrix()
    chosen = np.random.default_rng(1).integers(0, len(group), 20)
    found = np.matmul(true, group[chosen])
    assert np.allclose(evaluation.nearest_equivalent(found, true, group), found)
