# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of orientations and shifts: coverage, tiling, symmetry and conventions."""

from __future__ import annotations

import healpix
import numpy as np
import pytest
from tiny import random_rotations

from sparsecv.engine.physics.geometry import angular_distance, euler_to_matrix, rotvec_to_matrix
from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid, angular_step, shift_lattice
from sparsecv.engine.physics.symmetry import symmetric_distance, symmetry_matrices

TURN = random_rotations(1, seed=9)[0]


def nearest(grid: np.ndarray, queries: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Angle in degrees from each query to the nearest rotation of a grid, over the point group."""
    equivalent = (queries[:, None] @ matrices[None]).reshape(len(queries), -1, 9)
    trace = np.einsum("qgk,rk->qgr", equivalent, grid.reshape(-1, 9)).max(axis=(1, 2))
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


@pytest.mark.parametrize("name", ["C1", "C4", "D2", "O"])
def test_no_rotation_is_far_from_the_grid(name: str) -> None:
    matrices = symmetry_matrices(name)
    grid = GlobalGrid(2, TURN, matrices)
    rotations = grid.rotations(grid.cells(), 0)
    angles = nearest(rotations, random_rotations(300, seed=2), matrices)
    assert angles.max() < angular_step(2)
    assert 0.35 * angular_step(2) < angles.mean() < 0.65 * angular_step(2)


def test_grid_is_even() -> None:
    """Every cell stands for the same volume, so that functions over rotations average as they should."""
    grid = GlobalGrid(2, TURN, np.eye(3)[None])
    rotations = grid.rotations(grid.cells(), 0)
    assert len(rotations) == 12 * 4**2 * 6 * 2**2
    np.testing.assert_allclose(rotations.mean(axis=0), 0, atol=1e-3)
    second = np.einsum("nij,nkl->ijkl", rotations, rotations) / len(rotations)
    wanted = np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3
    np.testing.assert_allclose(second, wanted, atol=2e-3)


def test_children_of_all_cells_are_the_next_grid() -> None:
    coarse, fine = (GlobalGrid(order, TURN, np.eye(3)[None]) for order in (1, 2))
    children = coarse.children(coarse.cells(), 0).reshape(-1, 2)
    cells = fine.cells()
    assert len({tuple(cell) for cell in children.tolist()}) == len(children) == len(cells)
    order, other = np.lexsort(children.T), np.lexsort(cells.T)
    np.testing.assert_array_equal(children[order], cells[other])
    np.testing.assert_allclose(coarse.rotations(children[order], 1), fine.rotations(cells[other], 0), atol=1e-12)
    assert coarse.step(1) == fine.step(0) == 15.0


def test_children_surround_their_parent() -> None:
    grid = GlobalGrid(1, TURN, np.eye(3)[None])
    cells = grid.cells()
    children = grid.children(cells, 0)
    parents = np.repeat(grid.rotations(cells, 0), 8, axis=0)
    angles = angular_distance(grid.rotations(children.reshape(-1, 2), 1), parents)
    assert angles.max() < grid.step(0)


@pytest.mark.parametrize("name", ["C3", "D2", "T", "O", "I2"])
def test_asymmetric_unit_holds_its_part_of_the_directions(name: str) -> None:
    matrices = symmetry_matrices(name)
    grid, whole = (GlobalGrid(4, TURN, group) for group in (matrices, np.eye(3)[None]))
    cells = grid.cells()
    part, of = len(cells), len(whole.cells())
    assert part == pytest.approx(of / len(matrices), rel=0.1)
    assert len({tuple(cell) for cell in cells.tolist()}) == part
    # all the others have an equivalent in the unit no farther than the grid is wide
    others = whole.rotations(whole.cells()[::2999], 0)
    assert nearest(grid.rotations(cells, 0), others, matrices).max() < grid.step(0)


def test_rotations_are_those_of_relion_angles() -> None:
    grid = GlobalGrid(2, TURN, np.eye(3)[None])
    cells = np.array([[0, 0], [17, 3], [100, 23], [191, 11]])
    theta, phi = healpix.pix2ang(4, cells[:, 0], nest=True)
    psi = (cells[:, 1] + 0.5) * 15.0
    wanted = euler_to_matrix(np.rad2deg(phi), np.rad2deg(theta), psi) @ TURN
    np.testing.assert_allclose(grid.rotations(cells, 0), wanted, atol=1e-12)
    assert not grid.log_prior(cells, 0).any()


def test_local_lattice() -> None:
    offset = np.array([0.2, -0.4, 0.1])
    grid = LocalGrid(2.0, 3.0, offset)
    cells = grid.cells()
    length = np.linalg.norm(cells, axis=1)
    assert length.max() <= 9.0 + 1.0
    np.testing.assert_allclose(cells / 2.0 - offset, np.rint(cells / 2.0 - offset), atol=1e-9)
    # as many as the ball has room for
    assert len(cells) == pytest.approx(4 / 3 * np.pi * 10.0**3 / 2.0**3, rel=0.1)
    np.testing.assert_allclose(np.exp(grid.log_prior(cells, 0)), np.exp(-(length**2) / (2 * 9.0)))
    rotations = grid.rotations(cells, 0)
    np.testing.assert_allclose(angular_distance(rotations, np.tile(np.eye(3), (len(cells), 1, 1))), length, atol=1e-5)
    np.testing.assert_allclose(rotations, rotvec_to_matrix(np.deg2rad(cells)), atol=1e-12)


def test_local_children_tile_the_lattice() -> None:
    grid = LocalGrid(2.0, 1.5, np.zeros(3))
    cells = grid.cells()
    children = grid.children(cells, 0)
    np.testing.assert_allclose(children.mean(axis=1), cells, atol=1e-12)
    np.testing.assert_allclose(np.abs(children - cells[:, None]), 0.5)
    all_of_them = children.reshape(-1, 3)
    assert len(np.unique(all_of_them, axis=0)) == len(all_of_them)
    # the finer lattice has no gaps: every child has its neighbour one fine step along x, but at the rim
    assert grid.step(1) == 1.0
    inner = all_of_them[np.linalg.norm(all_of_them, axis=1) < 3]
    listed = {tuple(child) for child in all_of_them.tolist()}
    assert all((x + 1.0, y, z) in listed for x, y, z in inner.tolist())


@pytest.mark.parametrize(("reach", "step"), [(5.0, 1.0), (7.3, 2.0), (10.0, 0.5)])
def test_shift_lattice(reach: float, step: float) -> None:
    offset = np.array([0.3, -0.2])
    shifts = shift_lattice(reach, step, offset)
    np.testing.assert_allclose(shifts / step - offset, np.rint(shifts / step - offset), atol=1e-9)
    assert np.linalg.norm(shifts, axis=1).max() <= reach + step / 4
    assert len(np.unique(shifts, axis=0)) == len(shifts)
    assert len(shifts) == pytest.approx(np.pi * (reach + step / 4) ** 2 / step**2, rel=0.1)


def test_shift_lattice_has_at_least_one_shift() -> None:
    np.testing.assert_allclose(shift_lattice(0.0, 4.0, np.array([0.45, 0.4])), [[1.8, 1.6]])


def test_symmetric_grid_and_distance_agree() -> None:
    """The nearest grid rotation by brute force is also the nearest by the distance that refinements report."""
    matrices = symmetry_matrices("D2")
    grid = GlobalGrid(1, TURN, matrices)
    rotations = grid.rotations(grid.cells(), 0)
    for query in random_rotations(5, seed=4):
        found = symmetric_distance(np.tile(query, (len(rotations), 1, 1)), rotations, matrices).min()
        assert found == pytest.approx(nearest(rotations, query[None], matrices)[0], abs=1e-6)
