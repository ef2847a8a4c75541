# SPDX-License-Identifier: GPL-3.0-or-later
"""Point groups: group axioms, RELION's own lists of operators, and the asymmetric unit."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.geometry import angular_distance
from sparsecv.engine.physics.symmetry import (
    nearest_equivalents,
    parse_symmetry,
    symmetric_distance,
    symmetry_matrices,
    unique_directions,
)

SIZES = {
    "C1": 1,
    "C2": 2,
    "C7": 7,
    "c13": 13,
    "D1": 2,
    "D2": 4,
    "D7": 14,
    "D7Y": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I2": 60,
    "I3": 60,
    "I4": 60,
}


@pytest.mark.parametrize("name", SIZES)
def test_group_axioms(name):
    group = symmetry_matrices(name)
    assert group.shape == (SIZES[name], 3, 3) and group.dtype == np.float64
    assert np.array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), np.broadcast_to(np.eye(3), group.shape), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-14)
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 1, 9)
    to_nearest = np.abs(products - group.reshape(1, -1, 9)).max(axis=2)
    assert to_nearest.min(axis=1).max() < 1e-13, "not closed"
    assert np.all((to_nearest < 1e-6).sum(axis=1) == 1), "an element stands twice"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("C0", "out of range"),
        ("D1000", "out of range"),
        ("X3", "unknown"),
        ("", "unknown"),
        ("C", "unknown"),
        ("I5", "unknown"),
        ("C-2", "unknown"),
        ("C3v", "mirrors"),
        ("Th", "mirrors"),
        ("Td", "mirrors"),
        ("Ci", "mirrors"),
        ("C4 ; rm", "unknown"),
    ],
)
def test_bad_names_say_why(bad, words):
    with pytest.raises(InputError, match=words) as caught:
        symmetry_matrices(bad)
    assert "rule:" in str(caught.value)


def test_names_are_canonical():
    assert parse_symmetry(" i ") == ("I2", 60) and parse_symmetry("d07") == ("D7", 14)


def test_the_caller_cannot_spoil_the_group():
    symmetry_matrices("O")[:] = 0
    assert symmetry_matrices("O")[0, 0, 0] == 1


@pytest.mark.relion
@pytest.mark.parametrize("name", ["C5", "D2", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"])
def test_same_operators_as_relion(name):
    listing = subprocess.run(
        ["relion_refine", "--sym", name, "--print_symmetry_ops"], capture_output=True, text=True, check=False
    ).stdout
    rows = [block.splitlines()[1:4] for block in listing.split("R(")[1:]]
    theirs = np.array([[[float(x) for x in row.split()] for row in block] for block in rows])
    ours = symmetry_matrices(name)
    assert theirs.shape == ours.shape
    distance = np.abs(ours.reshape(-1, 1, 9) - theirs.reshape(1, -1, 9)).max(axis=2)
    assert distance.min(axis=0).max() < 2e-5 and distance.min(axis=1).max() < 2e-5  # RELION prints five digits


@pytest.mark.parametrize("name", ["C1", "C2", "C7", "D2", "D7", "T", "O", "I1", "I2", "I3", "I4"])
def test_asymmetric_unit_of_a_healpix_grid(name):
    healpix = pytest.importorskip("healpix")
    directions = np.stack(healpix.pix2vec(32, np.arange(12 * 32**2)), axis=1)
    group = symmetry_matrices(name)
    kept = unique_directions(directions, group)
    assert kept.mean() == pytest.approx(1 / len(group), rel=0.06)
    # Every direction of the sphere has an equivalent that is kept, on and off the grid.
    probes = np.random.default_rng(1).standard_normal((300, 3))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    equivalents = np.einsum("ni,gij->ngj", probes, group)
    assert np.all(unique_directions(equivalents.reshape(-1, 3), group).reshape(300, -1).any(axis=1))
    nearest = np.einsum("ngj,kj->ngk", equivalents, directions[kept]).max(axis=(1, 2))
    assert np.degrees(np.arccos(nearest.min())) < 3.0  # the grid's spacing is 1.8 degrees


def test_ties_are_kept():
    group = symmetry_matrices("C4")
    poles = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    assert unique_directions(poles, group).all()


def test_equivalent_poses_act_from_the_right():
    """A map with the symmetry looks the same from A and A R: its atoms land on the same points."""
    group, rng = symmetry_matrices("D3"), np.random.default_rng(2)
    atoms = (group @ rng.standard_normal(3)).reshape(-1, 3)
    pose = Rotation.random(rng=rng).as_matrix()
    first = atoms @ pose.T
    for element in group:
        second = atoms @ (pose @ element).T
        assert np.linalg.norm(first[:, None] - second[None], axis=2).min(axis=1).max() < 1e-12


def test_nearest_equivalents():
    rng = np.random.default_rng(4)
    group = symmetry_matrices("D7")
    poses, centres = Rotation.random(50, rng=rng).as_matrix(), Rotation.random(50, rng=rng).as_matrix()
    found = nearest_equivalents(poses, centres, group)
    np.testing.assert_allclose(angular_distance(found, centres), symmetric_distance(poses, centres, group), atol=1e-9)
    turns = poses.transpose(0, 2, 1) @ found
    assert np.abs(turns[:, None] - group).max(axis=(2, 3)).min(axis=1).max() < 1e-12  # each is one of the group
    assert nearest_equivalents(poses, centres, np.eye(3)[None]) is poses


def test_symmetric_distance():
    rng = np.random.default_rng(3)
    group = symmetry_matrices("O")
    first = Rotation.random(50, rng=rng).as_matrix()
    tilt = Rotation.from_rotvec(np.deg2rad(5) * np.array([0.6, 0, 0.8])).as_matrix()
    second = tilt @ first @ group[rng.integers(0, 24, 50)]
    np.testing.assert_allclose(symmetric_distance(first, second, group), 5, atol=1e-6)
    alone = symmetric_distance(first, second, np.eye(3)[None])
    np.testing.assert_allclose(alone, angular_distance(first, second), atol=1e-6)


def test_dihedral_groups_with_the_two_fold_axis_along_y() -> None:
    """Those of cryoSPARC: the group along x, turned by 90 degrees; for even orders nothing changes."""
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    turned = quarter @ symmetry_matrices("D7") @ quarter.T
    along_y = symmetry_matrices("D7Y")
    assert all(np.abs(turned - element).max(axis=(1, 2)).min() < 1e-9 for element in along_y)
    assert any(np.allclose(element, np.diag([-1, 1, -1])) for element in along_y)
    assert parse_symmetry("d4y") == ("D4", 8)
    assert parse_symmetry("D7x") == ("D7", 14)
    with pytest.raises(InputError, match="unknown point group"):
        parse_symmetry("C3Y")
