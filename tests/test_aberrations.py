# SPDX-License-Identifier: GPL-3.0-or-later
"""Aberrations against closed forms."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from sparsecv.engine.physics.aberrations import even_order, even_polynomial, monomials, odd_order, odd_polynomial
from sparsecv.engine.physics.ctf import CtfParameters, ctf, wavelength

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
