# SPDX-License-Identifier: GPL-3.0-or-later
"""Euler angles and rotations against RELION's formulas written out, and against its program."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from scipy import ndimage

from sparsecv.engine.io.mrc import ImageStack, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.geometry import (
    angular_distance,
    euler_to_matrix,
    matrix_to_euler,
    random_rotation,
    rotvec_to_matrix,
)


def angles(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, n), np.rad2deg(np.arccos(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)


def test_matrix_elements():
    """The nine products of sines and cosines of a passive ZYZ rotation (Heymann, Chagoyen & Belnap 2005, eq. 1)."""
    rot, tilt, psi = angles()
    (ca, sa), (cb, sb), (cg, sg) = ((np.cos(np.deg2rad(x)), np.sin(np.deg2rad(x))) for x in (rot, tilt, psi))
    expected = np.array([
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]).transpose(2, 0, 1)
    np.testing.assert_allclose(euler_to_matrix(rot, tilt, psi), expected, atol=1e-14)


def test_view_direction_is_the_third_row():
    rot, tilt, psi = angles()
    a, b = np.deg2rad(rot), np.deg2rad(tilt)
    direction = np.stack([np.sin(b) * np.cos(a), np.sin(b) * np.sin(a), np.cos(b)], axis=1)
    np.testing.assert_allclose(euler_to_matrix(rot, tilt, psi)[:, 2], direction, atol=1e-14)


def test_angles_survive_the_matrix():
    given = np.stack(angles(), axis=1)
    np.testing.assert_allclose(matrix_to_euler(euler_to_matrix(*given.T)), given, atol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 180.0, 180 - 1e-9])
def test_poles_keep_the_rotation(tilt):
    matrices = euler_to_matrix([30.0, -120.0], [tilt, tilt], [50.0, 170.0])
    back = matrix_to_euler(matrices)
    assert np.all(back[:, 0] == 0)
    np.testing.assert_allclose(euler_to_matrix(*back.T), matrices, atol=1e-8)


def test_angular_distance():
    rng = np.random.default_rng(1)
    first = np.stack([random_rotation(rng) for _ in range(20)])
    vectors = rng.standard_normal((20, 3))
    vectors *= (np.linspace(0.01, 3.1, 20) / np.linalg.norm(vectors, axis=1))[:, None]
    second = rotvec_to_matrix(vectors) @ first
    np.testing.assert_allclose(angular_distance(first, second), np.rad2deg(np.linspace(0.01, 3.1, 20)), atol=1e-5)
    np.testing.assert_allclose(angular_distance(first, first), 0, atol=1e-5)


def test_random_rotations_are_proper_and_uniform():
    rng = np.random.default_rng(2)
    sample = np.stack([random_rotation(rng) for _ in range(3000)])
    np.testing.assert_allclose(np.linalg.det(sample), 1, atol=1e-12)
    assert np.abs(sample.mean(axis=0)).max() < 0.05
    # Cosine of the tilt is uniform: second and fourth moments 1/3 and 1/5.
    assert np.mean(sample[:, 2, 2] ** 2) == pytest.approx(1 / 3, abs=0.02)
    assert np.mean(sample[:, 2, 2] ** 4) == pytest.approx(1 / 5, abs=0.02)


@pytest.mark.relion
def test_relion_puts_a_blob_where_the_matrix_says(tmp_path):
    """A blob at x in the map lies at A x - origin from the centre of RELION's projection."""
    box, pixel = 64, 2.0
    place = np.array([13.0, -6.0, 9.0])  # pixels from the centre
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    squared = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
    write_map(tmp_path / "blob.mrc", np.exp(-squared / (2 * 2.0**2)), pixel)
    rot, tilt, psi = angles(12, seed=3)
    origins = np.random.default_rng(4).uniform(-8, 8, (12, 2))  # A
    star = StarFile.new()
    star.add_loop("optics", {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0],
                             "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1],
                             "rlnImagePixelSize": [pixel], "rlnImageSize": [box], "rlnImageDimensionality": [2]})
    star.add_loop("particles", {"rlnImageName": [f"{i + 1}@none.mrcs" for i in range(12)], "rlnOpticsGroup": [1] * 12,
                                "rlnAngleRot": rot, "rlnAngleTilt": tilt, "rlnAnglePsi": psi,
                                "rlnOriginXAngst": origins[:, 0], "rlnOriginYAngst": origins[:, 1]})
    star.write(tmp_path / "views.star")
    subprocess.run(["relion_project", "--i", "blob.mrc", "--ang", "views.star", "--o", "images", "--angpix", "2"],
                   cwd=tmp_path, check=True, capture_output=True)
    images = ImageStack(tmp_path / "images.mrcs").read(np.arange(12))
    centres = np.array([ndimage.center_of_mass(np.clip(image - 0.1 * image.max(), 0, None)) for image in images])
    expected = (euler_to_matrix(rot, tilt, psi) @ place)[:, :2] - origins / pixel
    np.testing.assert_allclose(centres[:, ::-1] - box // 2, expected, atol=0.05)
