# SPDX-License-Identifier: GPL-3.0-or-later
"""Aberrations against closed forms, and what the door of the images takes out of them."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.aberrations import even_order, even_polynomial, monomials, odd_order, odd_polynomial
from sparsecv.engine.physics.ctf import CtfParameters, ctf, wavelength

BOX, PIXEL, COUNT = 32, 2.0, 4
K = np.random.default_rng(1).uniform(-0.4, 0.4, (2, 50))  # 1/A


def zernike(n, m, x, y):
    """The definition in polar coordinates."""
    rho, phi, size = np.hypot(x, y), np.arctan2(y, x), abs(m)
    radial = sum(
        (-1) ** k * factorial(n - k) / (factorial(k) * factorial((n + size) // 2 - k) * factorial((n - size) // 2 - k))
        * rho ** (n - 2 * k) for k in range((n - size) // 2 + 1))  # fmt: skip
    return radial * (np.cos(m * phi) if m >= 0 else np.sin(-m * phi))


def test_relions_order_of_the_coefficients():
    assert [even_order(i) for i in range(6)] == [(0, 0), (2, -2), (2, 0), (2, 2), (4, -4), (4, -2)]
    assert [odd_order(i) for i in range(7)] == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3), (5, -5)]


@pytest.mark.parametrize(("order", "polynomial", "odd"), [(even_order, even_polynomial, False),
                                                          (odd_order, odd_polynomial, True)])  # fmt: skip
def test_polynomials_are_zernikes(order, polynomial, odd):
    for index in range(20):
        found = polynomial([0.0] * index + [1.0])
        np.testing.assert_allclose(found @ monomials(*K, len(found), odd=odd), zernike(*order(index), *K), atol=1e-12)
    weights = np.random.default_rng(2).normal(size=12)
    expected = sum(weight * zernike(*order(index), *K) for index, weight in enumerate(weights))
    found = polynomial(weights)
    np.testing.assert_allclose(found @ monomials(*K, len(found), odd=odd), expected, atol=1e-12)
    assert len(polynomial([])) == len(polynomial([0.0, 0.0])) == 0


def test_beam_tilt_is_coma():
    """-2 pi Cs lambda^2 (t . k) k^2, added to what the coefficients say."""
    lam = float(wavelength(np.array(200.0)))
    found = odd_polynomial([3.0], (0.4, -0.3), 2.0, lam)
    phase = -2 * np.pi * 2e7 * lam**2 * 1e-3 * (0.4 * K[0] - 0.3 * K[1]) * (K**2).sum(axis=0)
    np.testing.assert_allclose(found @ monomials(*K, len(found), odd=True), phase + 3 * K[1], rtol=1e-10, atol=1e-12)


def test_an_even_aberration_of_order_two_is_defocus():
    """Z_2^0 = 2 k^2 - 1: of c radians, a defocus of -2 c / (pi lambda) and a phase of c."""
    one = {name: np.ones(1) * value for name, value in {
        "defocus_u": 9000.0, "defocus_v": 8000.0, "defocus_angle": 20.0, "phase_shift": 0.0, "bfactor": 0.0,
        "scale": 1.0, "voltage_kv": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.1}.items()}  # fmt: skip
    c, lam = 20.0, wavelength(np.array(300.0))
    moved = -2 * c / (np.pi * lam)
    same = one | {"defocus_u": one["defocus_u"] + moved, "defocus_v": one["defocus_v"] + moved,
                  "phase_shift": np.rad2deg(c) * np.ones(1)}  # fmt: skip
    found = ctf(CtfParameters(**one, even=even_polynomial([0, 0, c])[None]), *K, 1, 1.0)
    np.testing.assert_allclose(found, ctf(CtfParameters(**same), *K, 1, 1.0), atol=1e-5)


def project(folder, optics, images, particles=None):
    """A STAR file of images in one optics group with further columns."""
    write_stack(folder / "a.mrcs", images, PIXEL)
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [PIXEL], "rlnImageSize": [images.shape[1]],
        "rlnImageDimensionality": [2], **{name: [value] for name, value in optics.items()},
    })  # fmt: skip
    count = len(images)
    star.add_loop("particles", {
        "rlnImageName": [f"{row + 1}@{folder}/a.mrcs" for row in range(count)], "rlnOpticsGroup": [1] * count,
        "rlnDefocusU": np.full(count, 12000.0), "rlnDefocusV": np.full(count, 11000.0),
        "rlnDefocusAngle": np.full(count, 15.0), **(particles or {}),
    })  # fmt: skip
    star.write(folder / "in.star")
    return folder / "in.star"


def noise(count=COUNT, box=BOX):
    return np.random.default_rng(3).normal(size=(count, box, box)).astype(np.float32)


def test_the_door_takes_an_odd_phase_out(tmp_path):
    """Z_1^1 = k_x is a displacement: exp(i o k_x) moves an image by -o / 2 pi along x, in A."""
    images = noise()
    o = 2 * np.pi * 3 * PIXEL
    table = ParticleTable.read(project(tmp_path, {"rlnOddZernike": f"[0,{o:.12f}]"}, np.roll(images, -3, axis=2)))
    found, good = table.read_images(np.arange(COUNT))
    assert good.all() and not table.warnings
    np.testing.assert_allclose(found, images, atol=2e-5)
    one, _ = table.read_images([2])  # neighbours in a batch do not show
    np.testing.assert_array_equal(one[0], found[2])


def test_images_without_aberrations_pass_as_they_are(tmp_path):
    images = noise()
    table = ParticleTable.read(project(tmp_path, {"rlnOddZernike": "[0,0]", "rlnBeamTiltX": 0.0}, images))
    np.testing.assert_array_equal(table.read_images(np.arange(COUNT))[0], images)
    assert table.ctf_parameters().even is None


def test_coma_of_a_beam_tilt_is_taken_out(tmp_path):
    images = noise()
    kx, ky = np.fft.rfftfreq(BOX, PIXEL)[None, :], np.fft.fftfreq(BOX, PIXEL)[:, None]
    lam = float(wavelength(np.array(300.0)))
    phase = -2 * np.pi * 2.7e7 * lam**2 * 1e-3 * (0.5 * kx + 0.2 * ky) * (kx**2 + ky**2)
    blurred = np.fft.irfft2(np.fft.rfft2(images) * np.exp(1j * phase), s=(BOX, BOX)).astype(np.float32)
    table = ParticleTable.read(project(tmp_path, {"rlnBeamTiltX": 0.5, "rlnBeamTiltY": 0.2}, blurred))
    difference = np.fft.rfft2(table.read_images(np.arange(COUNT))[0] - images)
    assert np.abs(difference[:, np.abs(np.fft.fftfreq(BOX, 1 / BOX)) < BOX // 2, : BOX // 2]).max() < 1e-3


def test_tilts_of_relion_3_0_make_groups(tmp_path):
    path = project(tmp_path, {}, noise())
    star, old = StarFile.read(path), StarFile.new()
    table = star.table("particles")
    columns = {name: table.strings(name) for name in table.columns if name != "rlnOpticsGroup"}
    old.add_loop("", columns | {
        "rlnVoltage": [300.0] * COUNT, "rlnSphericalAberration": [2.7] * COUNT, "rlnAmplitudeContrast": [0.1] * COUNT,
        "rlnMagnification": [10000.0] * COUNT, "rlnDetectorPixelSize": [PIXEL] * COUNT,
        "rlnBeamTiltX": [0.1, 0.1, -0.2, 0.1], "rlnBeamTiltY": [0.0] * COUNT,
    })  # fmt: skip
    old.write(tmp_path / "old.star")
    read = ParticleTable.read(tmp_path / "old.star")
    assert [group.beam_tilt for group in read.optics] == [(0.1, 0.0), (-0.2, 0.0)]
    assert read.optics_index.tolist() == [0, 0, 1, 0]
    read.write(tmp_path / "new.star")
    again = ParticleTable.read(tmp_path / "new.star")
    assert again.optics == read.optics
    np.testing.assert_array_equal(again.read_images([2])[0], read.read_images([2])[0])


def test_a_tilt_outside_of_the_optics_table_is_said(tmp_path):
    path = project(tmp_path, {}, noise(), {"rlnBeamTiltX": [0.1] * COUNT})
    assert "ignored: rlnBeamTiltX" in " ".join(ParticleTable.read(path).warnings)


@pytest.mark.parametrize(("column", "value", "text"), [
    ("rlnOddZernike", "[0,x]", "not a vector of numbers"), ("rlnEvenZernike", "[nan]", "not a vector of numbers"),
    ("rlnEvenZernike", "[0,1_0]", "not a vector of numbers"), ("rlnBeamTiltY", 1e4, "mrad, at most 100"),
    ("rlnOddZernike", "[" + "0," * 40 + "1]", "too many Zernike coefficients (value 41); rule: up to order 8"),
])  # fmt: skip
def test_wrong_aberrations_are_refused(tmp_path, column, value, text):
    with pytest.raises(InputError) as error:
        ParticleTable.read(project(tmp_path, {column: value}, noise()))
    assert f"data_optics, row 1, column {column}" in str(error.value) and text in str(error.value)
