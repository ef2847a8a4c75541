# SPDX-License-Identifier: GPL-3.0-or-later
"""Aberrations beyond defocus, astigmatism and Cs: RELION's Zernike coefficients as polynomials in frequency.

With k in 1/A, rho = |k| and phi its polar angle from x towards y, RELION's Zernike polynomials are not normalised and
their unit disc has the radius 1/A [Zivanov2020]::

    Z_n^m(k) = R_n^m(rho) cos(m phi)   m >= 0,      R_n^-m(rho) sin(-m phi)   m < 0

*Odd* ones (n odd: beam tilt, coma, trefoil) are a phase of the image, X = exp(i sum_j o_j Z_j) C P; *even* ones (n
even: tetrafoil) belong to the CTF, C = sin(gamma - sum_j e_j Z_j). A beam tilt (t_x, t_y) is the odd phase

    -2 pi Cs lambda^2 (t_x k_x + t_y k_y) |k|^2

Every Z_n^m is a polynomial in k_x and k_y of degree n whose terms all have the parity of n: a sum of them is a list of
coefficients of monomials, in the order x^d, x^(d-1) y, ..., y^d within a degree d, lower degrees first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, factorial, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_ORDER = 8  # of a Zernike polynomial; RELION fits up to 4 by default


def even_order(index: int) -> tuple[int, int]:
    """(n, m) of RELION's even coefficient at ``index``, from 0: n = 0; n = 2, m = -2, 0, 2; n = 4, m = -4 ... 4."""
    k = isqrt(index)
    return 2 * k, 2 * (index - k * k - k)


def odd_order(index: int) -> tuple[int, int]:
    """(n, m) of RELION's odd coefficient at ``index``, from 0: n = 1, m = -1, 1; n = 3, m = -3, -1, 1, 3."""
    k = (isqrt(1 + 4 * index) - 1) // 2
    n = 2 * k + 1
    return n, 2 * (index - k * k - k) - n


def even_polynomial(coefficients: Sequence[float]) -> NDArray[np.float64]:
    """Coefficients of the even monomials, (E,), of a sum of RELION's even Zernike polynomials; radians."""
    return _polynomial(coefficients, even_order)


def odd_polynomial(
    coefficients: Sequence[float], beam_tilt: tuple[float, float] = (0, 0), cs_mm: float = 0, wavelength: float = 0
) -> NDArray[np.float64]:
    """Coefficients of the odd monomials, (O,), of RELION's odd Zernike polynomials and a beam tilt; radians.

    Parameters
    ----------
    coefficients
        rlnOddZernike.
    beam_tilt
        (x, y), mrad.
    cs_mm, wavelength
        mm and A: what turns the tilt into a phase.
    """
    polynomial = _polynomial(coefficients, odd_order)
    if any(beam_tilt):
        polynomial = np.pad(polynomial, (0, max(0, 6 - len(polynomial))))
        factor = -2 * np.pi * cs_mm * 1e7 * wavelength**2 * 1e-3
        x, y = factor * beam_tilt[0], factor * beam_tilt[1]
        polynomial[2:6] += x, y, x, y  # x^3, x^2 y, x y^2, y^3 of (x k_x + y k_y)(k_x^2 + k_y^2)
    return polynomial


def even_coefficients(polynomial: NDArray[np.float64]) -> NDArray[np.float64]:
    """RELION's even Zernike coefficients of even monomials: the inverse of `even_polynomial`."""
    return _coefficients(polynomial, even_order)


def odd_coefficients(polynomial: NDArray[np.float64]) -> NDArray[np.float64]:
    """RELION's odd Zernike coefficients of odd monomials: the inverse of `odd_polynomial` without a tilt."""
    return _coefficients(polynomial, odd_order)


def split_coma(
    polynomial: NDArray[np.float64], cs_mm: float, wavelength: float
) -> tuple[tuple[float, float], NDArray[np.float64]]:
    """Beam tilt (x, y) in mrad that makes the coma of odd monomials, and the monomials without it.

    A cubic a x^3 + b x^2 y + c x y^2 + d y^3 is coma (3a + c)/4 x|k|^2 + (b + 3d)/4 y|k|^2 and trefoil. Without a
    spherical aberration no tilt makes any: all of it stays.
    """
    if cs_mm == 0 or len(polynomial) < 6:
        return (0.0, 0.0), polynomial
    a, b, c, d = polynomial[2:6]
    coma = np.array([(3 * a + c) / 4, (b + 3 * d) / 4])
    rest = polynomial.copy()
    rest[2:6] -= (*coma, *coma)
    tilt = coma / (-2 * np.pi * cs_mm * 1e7 * wavelength**2 * 1e-3)
    return (float(tilt[0]), float(tilt[1])), rest


def monomials(x: Any, y: Any, count: int, *, odd: bool = False) -> NDArray[np.float64]:
    """Even or odd monomials at frequencies x, y (J,) in 1/A, float64 (count, J)."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    rows: list[NDArray[np.float64]] = []
    degree = 1 if odd else 0
    while len(rows) < count:
        rows += [first ** (degree - power) * second**power for power in range(degree + 1)]
        degree += 2
    return np.stack(rows[:count]) if rows else np.zeros((0, *first.shape))


def _polynomial(coefficients: Sequence[float], order: Any) -> NDArray[np.float64]:
    """Sum of Zernike polynomials as coefficients of monomials of one parity; none for no coefficients."""
    if not any(coefficients):
        return np.zeros(0)
    highest = order(len(coefficients) - 1)[0]
    first = highest % 2  # the lowest degree of this parity
    found = np.zeros(sum(degree + 1 for degree in range(first, highest + 1, 2)))
    for index, coefficient in enumerate(coefficients):
        n, m = order(index)
        for (a, b), factor in _zernike(n, m).items():
            before = sum(degree + 1 for degree in range(first, a + b, 2))
            found[before + b] += coefficient * factor
    return found


def _coefficients(polynomial: NDArray[np.float64], order: Any) -> NDArray[np.float64]:
    """Zernike coefficients of monomials of one parity; there are as many of either, up to any degree."""
    count = len(polynomial)
    columns = np.zeros((count, count))
    for index in range(count):
        found = _polynomial([0.0] * index + [1.0], order)
        columns[: len(found), index] = found
    return np.asarray(np.linalg.solve(columns, polynomial), dtype=np.float64) if count else np.zeros(0)


def _zernike(n: int, m: int) -> dict[tuple[int, int], float]:
    """Coefficients of x^a y^b in Z_n^m, by (a, b).

    rho^n-2k cos(m phi) = (x^2 + y^2)^((n - m)/2 - k) Re (x + iy)^m, and the sine is its imaginary part.
    """
    size, found = abs(m), dict[tuple[int, int], float]()
    for k in range((n - size) // 2 + 1):
        radial = (-1) ** k * factorial(n - k) / (
            factorial(k) * factorial((n + size) // 2 - k) * factorial((n - size) // 2 - k))  # fmt: skip
        left = (n - size) // 2 - k
        for i in range(size + 1):
            turn = 1j**i  # of (iy)^i
            part = turn.real if m >= 0 else turn.imag
            for j in range(left + 1):
                if part:
                    place = (size - i + 2 * (left - j), i + 2 * j)
                    found[place] = found.get(place, 0.0) + radial * comb(size, i) * part * comb(left, j)
    return found
