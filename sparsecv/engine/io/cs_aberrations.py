# SPDX-License-Identifier: GPL-3.0-or-later
"""Aberrations and anisotropic magnification of cryoSPARC's tables as RELION's, and back.

cryoSPARC writes lengths in A: those by which microscopists expand the phase of a lens [Haider2000]_, with the shift
turned round. At a frequency k of polar angle phi, from x towards y, with s the sign of the convention, an image is
exp(i odd) C P and C = sin(gamma - even), where Cs is part of gamma::

    odd  = s (2 pi k . (lambda^2 |k|^2 tilt_A - shift_A) + 2 pi/3 lambda^2 |k|^3 (f0 cos 3phi + f1 sin 3phi))
    even = pi/2 lambda^3 |k|^4 (4 t0 cos 2phi + 4 t1 sin 2phi + t2 cos 4phi + t3 sin 4phi)

with f = trefoil_A and t = tetra_A; and rlnMagMat = 1 + anisomag, row by row. Who says so, and why the sign is a choice,
is in docs/decisions.md. RELION's polynomials up to the fourth order are as many as cryoSPARC's terms with phase shift,
defocus, astigmatism and Cs, so that each has an exact counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.io.optics_terms import BEAM_TILT, EVEN, IDENTITY, LARGEST_TILT, MAGNIFICATION, ODD
from sparsecv.engine.physics.aberrations import even_coefficients, monomials, odd_coefficients, split_coma
from sparsecv.engine.physics.ctf import wavelength

SHIFT, TILT, TREFOIL, TETRA = "ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A"
ANISOMAG = "ctf/anisomag"
TERMS = {SHIFT: 2, TILT: 2, TREFOIL: 2, TETRA: 4, ANISOMAG: 4}  # numbers of each
LARGEST = {SHIFT: 1e4, TILT: 1e8, TREFOIL: 1e8, TETRA: 1e10, ANISOMAG: 0.2}  # A; of the matrix, as for rlnMagMat
SPECTER, PYEM, NONE = "specter", "pyem", "none"
CONVENTIONS = (SPECTER, PYEM, NONE)  # of the odd terms, by the programs that have it
SIGNS = {SPECTER: 1.0, PYEM: -1.0, NONE: 1.0}
LARGEST_CS = 99.0  # mm, in a STAR file; cryoSPARC fits any, also below 0: the rest is an even aberration
SMALLEST_CS = 0.01  # mm: below it coma is no beam tilt of any sense
ODD_COUNT, EVEN_COUNT = 6, 9  # monomials up to the third and fourth degree
NOTHING = 1e-9  # rad at Nyquist
ROUNDING = 1e-12  # of the largest coefficient: all are phases at 1/A


@dataclass(frozen=True)
class CsTerms:
    """What RELION's terms of an optics group are in a ``.cs`` table.

    Attributes
    ----------
    values
        Numbers of each field of `TERMS`, A.
    cs_mm
        Spherical aberration.
    phase_shift, defocus
        What is added to the particles' own, for even terms below the fourth order: rad; and A, to `defocus_terms`.
    lost
        Largest phase at Nyquist of terms beyond the fourth order, which have no counterpart, rad.
    """

    values: dict[str, tuple[float, ...]]
    cs_mm: float
    phase_shift: float
    defocus: tuple[float, float, float]
    lost: float


# --------------------------------------------------------------------------------------------------- to RELION's terms
def relion_columns(
    values: Mapping[str, NDArray[Any]], cs_mm: NDArray[np.float64], voltage_kv: NDArray[np.float64], convention: str
) -> dict[str, list[str]]:
    """Columns of an optics table of cryoSPARC's terms, as text that holds every digit; none for what is 0 everywhere.

    Parameters
    ----------
    values
        By field of `TERMS`, (groups, numbers); a field that is absent is 0.
    cs_mm, voltage_kv
        mm and kV, (groups,).
    convention
        One of `CONVENTIONS`; with none of them the terms are left out.

    Returns
    -------
    Columns by name, rlnSphericalAberration among them.
    """
    count = len(cs_mm)
    kept = np.clip(cs_mm, 0, LARGEST_CS)
    columns = {"rlnSphericalAberration": [repr(float(value)) for value in kept]}
    if convention == NONE:
        values = {}
    lengths = np.asarray(wavelength(voltage_kv), dtype=np.float64)
    tilts, odd, even = [], [], []
    for row in range(count):
        own = {name: np.asarray(values[name][row], dtype=np.float64) for name in TERMS if name in values}
        phase = SIGNS[convention] * odd_monomials(own, lengths[row])
        tilt, rest = (0.0, 0.0), phase
        if kept[row] >= SMALLEST_CS:
            tilt, rest = split_coma(phase, float(kept[row]), float(lengths[row]))
            if max(map(abs, tilt)) > LARGEST_TILT:
                tilt, rest = (0.0, 0.0), phase
        tilts.append(tilt)
        odd.append(_rounded(odd_coefficients(rest)))
        even.append(_rounded(even_coefficients(even_monomials(own, 1e7 * (cs_mm[row] - kept[row]), lengths[row]))))
    if np.any(tilts):
        columns |= {name: [repr(float(tilt[axis])) for tilt in tilts] for axis, name in enumerate(BEAM_TILT)}
    for name, rows in ((ODD, odd), (EVEN, even)):
        if np.any(rows):
            columns[name] = [f"[{','.join(repr(float(value)) for value in row)}]" for row in rows]
    if ANISOMAG in values and np.any(values[ANISOMAG]):
        matrices = np.asarray(values[ANISOMAG], dtype=np.float64) + IDENTITY
        columns |= {name: [repr(value) for value in matrices[:, k].tolist()] for k, name in enumerate(MAGNIFICATION)}
    return columns


def odd_monomials(values: Mapping[str, NDArray[Any]], length: float) -> NDArray[np.float64]:
    """Odd phase of one group's terms, without the sign of the convention, as coefficients of monomials (6,)."""
    (s0, s1), (t0, t1), (f0, f1) = (values.get(name, np.zeros(2)) for name in (SHIFT, TILT, TREFOIL))
    cubic = 2 * np.pi * length**2
    return np.array([
        -2 * np.pi * s0, -2 * np.pi * s1,
        cubic * (t0 + f0 / 3), cubic * (t1 + f1), cubic * (t0 - f0), cubic * (t1 - f1 / 3),
    ])  # fmt: skip


def even_monomials(values: Mapping[str, NDArray[Any]], cs: float, length: float) -> NDArray[np.float64]:
    """Even phase of one group's terms and of a spherical aberration, A, as coefficients of monomials (9,)."""
    t0, t1, t2, t3 = values.get(TETRA, np.zeros(4))
    quartic = np.array([cs + 4 * t0 + t2, 8 * t1 + 4 * t3, 2 * cs - 6 * t2, 8 * t1 - 4 * t3, cs - 4 * t0 + t2])
    return np.concatenate([np.zeros(4), np.pi / 2 * length**3 * quartic])


def _rounded(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(coefficients) > ROUNDING * np.abs(coefficients).max(initial=0), coefficients, 0.0)


# ------------------------------------------------------------------------------------------------ to cryoSPARC's terms
def cs_terms(group: OpticsGroup, convention: str) -> CsTerms:
    """cryoSPARC's terms of an optics group; with no convention all of `values` is 0."""
    values: dict[str, tuple[float, ...]] = {}
    length = float(wavelength(np.array(group.voltage_kv)))
    frequency = 1 / (2 * group.pixel_size)
    odd, even = group.odd_polynomial(), group.even_polynomial()
    beyond = [np.where(np.arange(len(part)) < count, 0.0, part)
              for part, count in ((odd, ODD_COUNT), (even, EVEN_COUNT))]  # fmt: skip
    lost = sum(_largest(part, frequency, odd=is_odd) for part, is_odd in zip(beyond, (True, False), strict=True))
    a, b, c, d, e, f = SIGNS[convention] * _first(odd, ODD_COUNT)
    cubic = 2 * np.pi * length**2
    coma = (3 * c + e) / 4, (d + 3 * f) / 4
    values[SHIFT] = (-a / (2 * np.pi), -b / (2 * np.pi))
    values[TILT] = (coma[0] / cubic, coma[1] / cubic)
    values[TREFOIL] = (3 * (c - coma[0]) / cubic, -3 * (f - coma[1]) / cubic)
    low, quartic = _first(even, EVEN_COUNT)[:4], _first(even, EVEN_COUNT)[4:] / (np.pi / 2 * length**3)
    four = (quartic[0] + quartic[4] - quartic[2]) / 8
    values[TETRA] = ((quartic[0] - quartic[4]) / 8, (quartic[1] + quartic[3]) / 16,
                     four, (quartic[1] - quartic[3]) / 8)  # fmt: skip
    cs = (quartic[0] + quartic[4]) / 2 - four
    if abs(cs) * np.pi / 2 * length**3 * frequency**4 < NOTHING:
        cs = 0.0
    low = np.where(np.abs(low) * frequency ** np.array([0, 2, 2, 2]) < NOTHING, 0.0, low)
    per_defocus = np.pi * length
    defocus = (-(low[1] + low[3]) / 2 / per_defocus, -(low[1] - low[3]) / 2 / per_defocus, -low[2] / 2 / per_defocus)
    values[ANISOMAG] = tuple(x - one for x, one in zip(group.magnification, IDENTITY, strict=True))
    factor = 0.0 if convention == NONE else 1.0
    plain = {name: tuple(factor * float(x) + 0.0 for x in numbers) for name, numbers in values.items()}  # no -0.0
    return CsTerms(plain, group.cs_mm + 1e-7 * float(cs), -float(low[0]),
                   (float(defocus[0]), float(defocus[1]), float(defocus[2])), lost)  # fmt: skip


def _first(polynomial: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The first coefficients, 0 where there are fewer."""
    return np.pad(polynomial, (0, max(0, count - len(polynomial))))[:count]


# ---------------------------------------------------------------------------------------------------- how much they are
def sizes(values: Mapping[str, NDArray[Any]], voltage_kv: float, pixel_size: float) -> dict[str, float]:
    """How much each term of one group does, by field.

    Returns
    -------
    Largest phase at Nyquist, rad; of anisomag the largest change of a length, a fraction. Fields that are 0 are absent.
    """
    length, frequency = float(wavelength(np.array(voltage_kv))), 1 / (2 * pixel_size)
    found = {}
    for name in TERMS:
        if name not in values or not np.any(values[name]):
            continue
        own = {name: np.asarray(values[name], dtype=np.float64)}
        if name == ANISOMAG:
            found[name] = float(np.linalg.norm(own[name].reshape(2, 2), 2))
        elif name == TETRA:
            found[name] = _largest(even_monomials(own, 0.0, length), frequency, odd=False)
        else:
            found[name] = _largest(odd_monomials(own, length), frequency, odd=True)
    return found


def _largest(polynomial: NDArray[np.float64], frequency: float, *, odd: bool) -> float:
    """Largest modulus on a circle, of monomials."""
    if not np.any(polynomial):
        return 0.0
    angles = np.linspace(0, np.pi, 721)
    rows = monomials(frequency * np.cos(angles), frequency * np.sin(angles), len(polynomial), odd=odd)
    return float(np.abs(polynomial @ rows).max())
